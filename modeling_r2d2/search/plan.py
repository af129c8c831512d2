"""What has to be done so that an index holds what a source holds: found out before anything is written.

`make_plan` goes through a source once, compares it with what the index knows, and with what an interrupted run has
encoded, and gives a `Plan`. It reads files, and their bytes only where place, size and time do not tell whether a
picture is the same. Applied, a plan leaves nothing to do: the plan of the same source afterwards is empty.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, cast

from ..processing.datasets.report import Problem
from ..processing.files.images import ImageReadError
from .images import CollectionImage, digest_of
from .remaking import covers, in_full, is_there, places_of

#: A row of the index, or a part of an interrupted run and a row in it.
Place = int | tuple[int, int]
Progress = Callable[[int, str], Any]
_PLACE = ("path", "offset", "size", "mtime_ns", "source")


@dataclass(frozen=True, slots=True)
class Known:
    """What the index remembers of a picture: where its file was, the hash of its content, and the row that holds it."""

    place: Place
    image: CollectionImage
    content: str

    def same(self, found: CollectionImage) -> bool:
        """Whether a picture is as it was: the same file by place, size and time, else by its bytes; same captions."""
        known = self.image
        if known.texts != found.texts:
            return False
        state, now = ((each.offset, each.size, each.mtime_ns) for each in (known, found))
        if found.mtime_ns is not None and state == now and _same_file(known.path, found.path):
            return True
        return (found.data is not None or found.size == known.size) and _digest(found) == self.content

    def elsewhere(self, found: CollectionImage) -> str | None:
        """The file that was indexed, where it is another one than the picture's and still there."""
        path = self.image.path
        if path is None or found.path is None or not os.path.exists(path) or _same_file(path, found.path):
            return None
        return path

    def moved(self, found: CollectionImage) -> CollectionImage | None:
        """What to remember instead of the picture, which is the same; None where all is as it was."""
        known = self.image
        if _same_file(known.path, found.path):
            found = replace(found, path=known.path)  # maybe by another way to the same folder
        elif known.path is not None and known.state() is None:  # a copy: the place that is known holds
            found = replace(found, **{name: getattr(known, name) for name in _PLACE})
        same = all(getattr(known, name) == getattr(found, name) for name in ("id", "metadata", *_PLACE))
        return None if same else replace(found, data=None)


@dataclass
class Plan:
    """What a change makes of an index; `make_plan` makes it.

    Attributes:
        source: The source's `source_words`.
        known: What the index holds, by id.
        pending: What an interrupted run has encoded, by id.
        encode: Pictures that are new or have changed, in the order of the source, without their bytes.
        keep: The rows that the source still has, with the picture to remember instead where its place has changed.
        prune: Ids to remove, since the source no longer has them.
        not_pruned: Why none is removed, though that was asked for.
        gone: Ids of the index that the source does not name and whose files are no longer where they were.
        unchanged: How many.
        resumed: How many.
        moved: How many of these have another place now, or another id.
        seen: Ids of the source with their numbers in it.
        problems: Entries for the report of unreadable pictures, each with its number in the source.
    """

    source: str
    known: dict[str, Known]
    pending: dict[str, Known]
    encode: list[CollectionImage] = field(default_factory=list)
    keep: dict[Place, CollectionImage | None] = field(default_factory=dict)
    prune: frozenset[str] = frozenset()
    not_pruned: str | None = None
    gone: frozenset[str] = frozenset()
    unchanged: int = 0
    resumed: int = 0
    moved: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, dict]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether no row of the index changes."""
        return not (self.encode or self.prune or self.resumed or any(self.keep.values()))

    @property
    def resumed_ids(self) -> set[str]:
        """Ids of what an interrupted run has encoded and the source still has."""
        return self._kept_ids(self.pending)

    def leaving(self, fresh: Iterable[str]) -> list[int]:
        """Rows that the index loses once pictures of the ids `fresh` are encoded: those that are pruned, and whose id
        another picture bears now. A picture that has changed and cannot be read stays as it was."""
        taken = {*self.prune, *fresh, *self.resumed_ids, *self._kept_ids(self.known)}
        own = ((id, cast(int, each.place)) for id, each in self.known.items())  # in the index, rows
        return sorted(place for id, place in own if id in taken and place not in self.keep)

    def _kept_ids(self, known: dict[str, Known]) -> set[str]:
        return {(self.keep[each.place] or each.image).id for each in known.values() if each.place in self.keep}

    def unreadable(self, before: Iterable[dict], made: Iterable[dict]) -> list[dict]:
        """What could not be read, in the order of the sources: all of this one, and of others what is still there.

        Args:
            before: The index's entries.
            made: Those of what was to be encoded.
        """
        entries = [*((self.seen[entry["id"]], entry) for entry in made), *self.problems]
        covered = cache(partial(covers, self.source))
        others = [
            entry
            for entry in before
            if not covered(entry["source"])
            and entry["id"] not in self.seen
            and is_there(entry.get("path") or entry["location"])
        ]
        for _, entry in sorted(entries, key=lambda each: each[0]):
            places = {name: in_full(entry.get(name)) for name in ("location", "path")}
            written = {**entry, **places, "source": self.source}
            others.append({name: _unicode(value) for name, value in written.items()})
        return sorted(others, key=lambda entry: entry["source"])


def make_plan(
    items: Iterable[CollectionImage | Problem],
    known: dict[str, Known],
    source: str = "",
    pending: dict[str, Known] | None = None,
    tried: dict[str, dict] | None = None,
    prune: bool = False,
    progress: Progress = lambda count, doing: None,
) -> Plan:
    """What has to be done so that an index holds the pictures of a source. Writes nothing.

    Args:
        items: The source's pictures, and what is wrong with it, as `list_images` gives them.
        known: What the index holds, by id.
        source: The source's `source_words`.
        pending: What an interrupted run has encoded; it counts only where the source still has it as it was.
        tried: Entries of what could not be read in that run, by id.
        prune: Remove what the source no longer has: pictures that were listed from it, and those of others whose files
            are gone; unless the source has errors or is empty.
        progress: Called with how many pictures need no work, and why.
    """
    plan = Plan(source, known, pending or {})
    comparison = _Comparison(plan, tried or {}, progress)
    for number, item in enumerate(items):
        comparison.take(number, item)
    unnamed = [id for id in known if id not in plan.seen and id not in comparison.renamed]
    plan.gone = frozenset(id for id in unnamed if known[id].image.state() == "missing")
    if prune:
        wanted = frozenset(id for id in unnamed if id in plan.gone or comparison.is_own(known[id]))
        plan.not_pruned = comparison.unsure_of(wanted)
        plan.prune = wanted if plan.not_pruned is None else frozenset()
        plan.gone -= plan.prune
    return plan


def problem_of(image: CollectionImage, reason: str) -> dict:
    """An entry of the report of unreadable pictures."""
    state = {"size": image.size, "mtime_ns": image.mtime_ns, "path": image.path}
    return {"id": image.id, "location": image.location or image.id, "reason": reason, **state}


class _Comparison:
    """Takes the pictures of a source one by one and writes down in a plan what is to be done with each.

    Attributes:
        renamed: Ids of the index whose pictures have another id now.
        damaged: The source has errors, so what it does not name, pictures and captions, need not be gone.
        folders_without: Folders that the source names and in which it has found no picture so far.
    """

    def __init__(self, plan: Plan, tried: dict[str, dict], progress: Progress):
        self.plan, self.tried, self.progress = plan, tried, progress
        self.renamed: set[str] = set()
        self.damaged = False
        self.folders_without: list[str] = [place for place in places_of(plan.source) if os.path.isdir(place)]
        self._covers = cache(partial(covers, plan.source))
        self._missing: dict[str, list[Known]] | None = None
        self._missing_sizes: set[int | None] = set()
        self._by_place: dict[tuple[str | None, int | None], list[Known]] = {}

    def take(self, number: int, item: CollectionImage | Problem) -> None:
        """Decide about one picture."""
        plan = self.plan
        if isinstance(item, Problem):
            self.damaged = True
            plan.problems.append((number, {"id": None, "location": item.location, "reason": item.reason}))
            return
        item = replace(item, source=plan.source)
        if self.folders_without and item.path is not None:
            self.folders_without = [folder for folder in self.folders_without if not _is_in(item.path, folder)]
        if item.id in plan.seen:
            plan.problems.append((number, problem_of(item, "a picture of this id came before in the source")))
            return
        plan.seen[item.id] = number
        published, left = self._free(plan.known, item.id), self._free(plan.pending, item.id)
        if self.damaged and published is not None and set(item.texts) < set(published.image.texts):
            item = replace(item, texts=published.image.texts)  # the other captions may be behind the damage
        if published is not None and published.same(item):
            self._keep(published, item)
        elif left is not None and left.same(item):
            self._keep(left, item)
        elif (entry := self.tried.get(item.id)) is not None and problem_of(item, entry["reason"]) == entry:
            plan.problems.append((number, entry))
            self.progress(1, "resumed")
        elif published is not None and not self.is_own(published) and (other := published.elsewhere(item)):
            reason = f"the index holds {other} by this id: index both folders in one command, or --remove it"
            plan.problems.append((number, problem_of(item, reason)))
        elif (same := self._under_another_id(item)) is not None:
            self._keep(same, item)
        else:
            plan.encode.append(replace(item, data=None))

    def unsure_of(self, wanted: frozenset[str]) -> str | None:
        """Why these ids are not to be removed although the source does not name them; None: they are."""
        if self.damaged:
            return "the source has errors, and what it does not name may be behind them"
        if not self.plan.seen:
            return "the source is empty: is everything mounted that should be?"
        places = [path for id in wanted if (path := self.plan.known[id].image.path) is not None]
        for folder in self.folders_without:  # it held some and now holds none at all, as an unmounted one
            if any(_is_in(path, folder) for path in places):
                return f"{folder} is empty: is everything mounted that should be?"
        return None

    def _free(self, among: dict[str, Known], id: str) -> Known | None:
        """What is known by an id, unless it has got another one meanwhile."""
        known = among.get(id)
        return None if known is None or known.place in self.plan.keep else known

    def is_own(self, known: Known) -> bool:
        """Whether a picture was listed from this source, as it is now or was before."""
        return self._covers(known.image.source)

    def _keep(self, same: Known, item: CollectionImage) -> None:
        plan = self.plan
        moved = plan.keep[same.place] = same.moved(item)
        if moved is not None and (moved.id, moved.path) != (same.image.id, same.image.path):
            plan.moved += 1
        if plan.known.get(same.image.id) is same:
            if item.id != same.image.id:
                self.renamed.add(same.image.id)
            plan.unchanged += 1
            self.progress(1, "unchanged")
        else:
            plan.resumed += 1
            self.progress(1, "resumed")

    def _under_another_id(self, item: CollectionImage) -> Known | None:
        """A picture that is the same but for its id, which the source has not named so far: of a file that is gone, so
        that it has been renamed or moved to this one; or of this very file, where the source named it otherwise."""
        missing = self._look_for_places() if self._missing is None else self._missing
        alike = list(self._by_place.get((item.path, item.offset), ()))
        if item.size in self._missing_sizes and (content := _digest(item)) is not None:
            alike += missing.get(content, ())
        for known in alike:
            if known.place not in self.plan.keep and known.image.id not in self.plan.seen and known.same(item):
                return known
        return None

    def _look_for_places(self) -> dict[str, list[Known]]:
        """Sort what is known by content where files are gone, and by place where the source was named otherwise."""
        missing: dict[str, list[Known]] = {}
        for known in (*self.plan.known.values(), *self.plan.pending.values()):
            if known.image.state() == "missing":
                missing.setdefault(known.content, []).append(known)
                self._missing_sizes.add(known.image.size)
            elif known.image.path is not None and self.is_own(known):
                self._by_place.setdefault((known.image.path, known.image.offset), []).append(known)
        self._missing = missing
        return missing


def _digest(image: CollectionImage) -> str | None:
    """The hash of a picture's content; None where it cannot be read."""
    try:
        return digest_of(image.read())
    except ImageReadError:
        return None


def _is_in(path: str, folder: str) -> bool:
    """Whether a file lies in a folder whose name is real, by whatever way the file is named."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(os.path.join(folder, ""))


def _same_file(first: str | None, second: str | None) -> bool:
    if first is None or second is None or first == second:
        return first == second
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _unicode(value: Any) -> Any:
    """A value for JSON in UTF-8; names that are none come with backslashes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


__all__ = ["Known", "Plan", "Progress", "make_plan", "problem_of"]

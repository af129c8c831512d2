"""What a source holds, compared with what an index knows: unchanged, moved, changed, new, gone."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..processing.datasets.report import Problem
from ..processing.files.images import ImageReadError
from .encoding import Progress, problem_of
from .images import CollectionImage, digest_of
from .remaking import covers, places_of
from .store import Shard

Row = tuple[str, int]  # name of a shard, and a row in it


@dataclass(frozen=True, slots=True)
class Known:
    """What the index remembers of a picture: where its file was, the hash of its content, and the row that holds it."""

    place: Row
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
            kept = {name: getattr(known, name) for name in ("path", "offset", "size", "mtime_ns", "source")}
            found = replace(found, **kept)
        named = ("id", "path", "offset", "size", "mtime_ns", "source")
        return None if all(getattr(known, name) == getattr(found, name) for name in named) else found


def known_images(shards: Iterable[Shard]) -> dict[str, Known]:
    """What shards remember, by id; of one id in several, the last."""
    known = {}
    for shard in shards:
        contents = shard.rows.column("content").to_pylist()
        for row, (image, content) in enumerate(zip(shard.images(), contents, strict=True)):
            known[image.id] = Known((shard.record.name, row), image, content)
    return known


class Comparison:
    """Goes through a source once and finds out what has to be encoded.

    Args:
        known: what the index holds. pending: what an interrupted run has encoded, which counts only where the source
            still has it as it was. tried: entries of what could not be read in that run, by id. source: the source's
            `source_words`.

    Attributes:
        kept: the rows of `known` and `pending` that the source still has, with the picture to remember instead where
            its place has changed. resumed, unchanged, moved: how many; moved ones are among the unchanged, or resumed.
        seen: ids of the source. damaged: the source has errors, so what it does not name, pictures and captions, need
            not be gone.
        folders_without: folders that the source names and in which it has found no picture so far.
        problems: entries for the report of unreadable pictures, each with its number in the source.
    """

    def __init__(
        self,
        known: dict[str, Known],
        pending: dict[str, Known],
        tried: dict[str, dict],
        source: str,
        progress: Progress,
    ):
        self.known, self.pending, self.tried = known, pending, tried
        self.source, self.progress = source, progress
        self.kept: dict[Row, CollectionImage | None] = {}
        self.renamed: set[str] = set()
        self.resumed = self.unchanged = self.moved = 0
        self.seen: dict[str, int] = {}
        self.damaged = False
        self.problems: list[tuple[int, dict]] = []
        self.folders_without: list[str] = [place for place in places_of(source) if os.path.isdir(place)]
        self._covered: dict[str, bool] = {}
        self._missing: dict[str, list[Known]] | None = None
        self._missing_sizes: set[int | None] = set()
        self._by_place: dict[tuple[str | None, int | None], list[Known]] = {}

    def to_encode(self, items: Iterable[CollectionImage | Problem]) -> Iterator[CollectionImage]:
        """The pictures of a source that have to be encoded, in its order."""
        for number, item in enumerate(items):
            if isinstance(item, Problem):
                self.damaged = True
                self.problems.append((number, {"id": None, "location": item.location, "reason": item.reason}))
                continue
            item = replace(item, source=self.source)
            if self.folders_without and item.path is not None:
                self.folders_without = [folder for folder in self.folders_without if not _is_in(item.path, folder)]
            if item.id in self.seen:
                self.problems.append((number, problem_of(item, "a picture of this id came before in the source")))
                continue
            self.seen[item.id] = number
            published, left = self._free(self.known, item.id), self._free(self.pending, item.id)
            if self.damaged and published is not None and set(item.texts) < set(published.image.texts):
                item = replace(item, texts=published.image.texts)  # the other captions may be behind the damage
            if published is not None and published.same(item):
                self._keep(published, item)
            elif left is not None and left.same(item):
                self._keep(left, item)
            elif (entry := self.tried.get(item.id)) is not None and problem_of(item, entry["reason"]) == entry:
                self.problems.append((number, entry))
                self.progress(1, "resumed")
            elif published is not None and not self._is_own(published) and (other := published.elsewhere(item)):
                reason = f"the index holds {other} by this id: index both folders in one command, or --remove it"
                self.problems.append((number, problem_of(item, reason)))
            elif (same := self._under_another_id(item)) is not None:
                self._keep(same, item)
            else:
                yield item

    def ids_of(self, known: dict[str, Known]) -> set[str]:
        """Under which ids the kept ones of some rows are remembered."""
        return {(self.kept[each.place] or each.image).id for each in known.values() if each.place in self.kept}

    def gone(self) -> list[str]:
        """Ids of the index that the source does not name and whose files are no longer where they were."""
        return [id for id in self._unnamed() if self.known[id].image.state() == "missing"]

    def to_prune(self) -> set[str]:
        """Ids of the index that the source does not name: those that were listed from it, and those that are gone."""
        gone = set(self.gone())
        return {id for id in self._unnamed() if id in gone or self._is_own(self.known[id])}

    def covers(self, source: str) -> bool:
        """Whether this source names all that is still there of another one, given by its words."""
        if source not in self._covered:
            self._covered[source] = covers(self.source, source)
        return self._covered[source]

    def emptied(self, ids: Iterable[str]) -> str | None:
        """A folder of the source that held pictures of these ids and now holds none at all, as an unmounted one."""
        for folder in self.folders_without:
            if any((path := self.known[id].image.path) is not None and _is_in(path, folder) for id in ids):
                return folder
        return None

    def _free(self, among: dict[str, Known], id: str) -> Known | None:
        """What is known by an id, unless it has got another one meanwhile."""
        known = among.get(id)
        return None if known is None or known.place in self.kept else known

    def _is_own(self, known: Known) -> bool:
        """Whether a picture was listed from this source, as it is now or was before."""
        return self.covers(known.image.source)

    def _unnamed(self) -> list[str]:
        return [id for id in self.known if id not in self.seen and id not in self.renamed]

    def _keep(self, same: Known, item: CollectionImage) -> None:
        moved = self.kept[same.place] = same.moved(item)
        if moved is not None and (moved.id, moved.path) != (same.image.id, same.image.path):
            self.moved += 1
        if self.known.get(same.image.id) is same:
            if item.id != same.image.id:
                self.renamed.add(same.image.id)
            self.unchanged += 1
            self.progress(1, "unchanged")
        else:
            self.resumed += 1
            self.progress(1, "resumed")

    def _under_another_id(self, item: CollectionImage) -> Known | None:
        """A picture that is the same but for its id, which the source has not named so far: of a file that is gone, so
        that it has been renamed or moved to this one; or of this very file, where the source named it otherwise."""
        if self._missing is None:
            self._look_for_places()
        alike = list(self._by_place.get((item.path, item.offset), ()))
        if item.size in self._missing_sizes:
            alike += self._missing.get(_digest(item), ())
        for known in alike:
            if known.place not in self.kept and known.image.id not in self.seen and known.same(item):
                return known
        return None

    def _look_for_places(self) -> None:
        """Sort what is known by content where files are gone, and by place where the source was named otherwise."""
        self._missing = {}
        for known in (*self.known.values(), *self.pending.values()):
            if known.image.state() == "missing":
                self._missing.setdefault(known.content, []).append(known)
                self._missing_sizes.add(known.image.size)
            elif known.image.path is not None and self._is_own(known):
                self._by_place.setdefault((known.image.path, known.image.offset), []).append(known)


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


__all__ = ["Comparison", "Known", "known_images"]

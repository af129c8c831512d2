"""Make an index, add to it, take from it: streamed, resumable after any interruption, one writer at a time."""

import json
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

from ..evaluation.retrieval import is_token_wise
from ..modeling_r2d2 import R2D2Model
from ..processing.datasets.images import ImageReadError
from ..processing.datasets.report import Problem
from ..processing.files import atomic_path, write_text
from ..processing.processing_r2d2 import R2D2Processor
from .cache import CacheOptions
from .encoding import Progress, ShardEncoder, problem_of
from .locking import only_writer
from .manifest import MANIFEST, REPORT, FileRecord, Manifest, ModelIdentity, ShardRecord
from .ownership import Building, files_of, numbers_in_use, refuse_foreign
from .pictures import Picture, digest_of, list_pictures
from .store import PictureIndex, Shard, finished_shards, with_unreadable, write_shard
from .vectors import Kind, build_vectors, choose_kind, require_faiss

logger = logging.getLogger(__name__)

#: Smaller vector indexes are built anew when pictures are added: that is quick.
GROWS_FROM = 10_000


@dataclass(frozen=True)
class Built:
    """What a change of an index did.

    pictures: in the index now. added, changed, removed, unchanged: pictures. resumed: of those added, taken over from
    an interrupted run. unreadable: what was skipped, with location and reason. duplicates: pictures whose file has the
    same content as an earlier one's; they are kept.
    """

    pictures: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    resumed: int = 0
    duplicates: int = 0
    unreadable: list[dict] = field(default_factory=list)


class IndexBuilder:
    """Encodes pictures into an index.

    Args:
        model, processor: a model with its processor. root: folder of the index.
        cache: what to keep for the ranker. A model without one (PRD2) keeps nothing.
        vectors: "flat", "hnsw" or "ivf"; None: by size. A token-wise model (FILIP, Wukong) compares all, as "flat".
        batch_size: pictures that the tower sees at a time. shard_size: pictures of a shard; default: what takes
            256 MB, 1,024 at most, in whole batches.
        accelerator: of `accelerate`, to share the work among its processes; each encodes every n-th shard.
        progress: called with how many pictures were done since the last call, and with what is being done.

    Raises:
        ValueError: something to keep for a ranker that the model does not have; an approximate vector index for a
            token-wise model.
    """

    def __init__(
        self,
        model: R2D2Model,
        processor: R2D2Processor,
        root: str | PathLike,
        cache: CacheOptions | None = None,
        vectors: Kind | None = None,
        batch_size: int = 32,
        shard_size: int | None = None,
        accelerator: Any = None,
        progress: Progress | None = None,
    ):
        self.model, self.processor, self.root = model, processor, Path(root)
        self.identity = ModelIdentity.of(model, processor)
        self.cache = cache or CacheOptions()
        if self.cache.keep != "none" and not model.can_rank:
            raise ValueError(
                f"keep is {self.cache.keep!r}, but this model is pre-ranking only (PRD2, Wukong): use keep='none'"
            )
        if is_token_wise(model):
            if vectors not in (None, "flat"):
                raise ValueError(
                    f"vectors is {vectors!r}, but this model compares token by token: all pictures, exactly"
                )
            vectors = "flat"
        self.vectors, self.batch_size, self.accelerator = vectors, batch_size, accelerator
        self.shard_size = shard_size
        self._building: Building | None = None
        self.progress = progress or (lambda count, doing: None)
        self.encoder = ShardEncoder(model, processor, self.cache, batch_size, self.progress)

    # -- changes --------------------------------------------------------------------------------

    def add(self, source: Any, prune: bool = False, **reading: Any) -> Built:
        """Add the pictures of a source; what is in the index already, unchanged, is not encoded again.

        An interrupted run goes on where its last whole shard ended, when it is called again, and gives the index that
        an uninterrupted one would have given.

        Args:
            source, reading: see `list_pictures`. prune: remove pictures that the source no longer has.

        Raises:
            OtherModelError: the index belongs to another model. IndexLockedError: another writer.
            FileExistsError: the folder holds something else than an index; nothing was changed.
            ValueError: no readable picture in the source, nor in the index.
        """
        refuse_foreign(self.root)
        if self._number == 0:
            with only_writer(self.root):
                return self._add(source, prune, reading)
        return self._add(source, prune, reading)

    def _add(self, source: Any, prune: bool, reading: dict) -> Built:
        if self._number:  # the first process clears away what an interrupted run has left before the others look
            self._wait()
        manifest = self._manifest()
        pending = self._pending(manifest)
        if self._number == 0:
            self._building = Building.begin(self.root, manifest, self._run, pending)
            self._wait()
        self._wait()  # nobody writes before all have seen what is there
        known, resumed = self._known(manifest.shards), self._known(pending)
        resumed_bad = {entry["id"]: entry for record in pending for entry in record.unreadable}
        counts = {"unchanged": 0, "resumed": 0}
        seen: set[str] = set()
        problems: list[dict] = []

        def waiting() -> Iterator[Picture]:
            for item in list_pictures(source, **reading):
                if isinstance(item, Problem):
                    problems.append({"id": None, "location": item.location, "reason": item.reason})
                    continue
                if item.id in seen:
                    problems.append(problem_of(item, "a picture of this id came before in the source"))
                    continue
                seen.add(item.id)
                if item.id in resumed and resumed[item.id].same(item):
                    counts["resumed"] += 1
                    self.progress(1, "resumed")
                elif item.id in resumed_bad and resumed_bad[item.id]["size"] == item.size:
                    self.progress(1, "resumed")
                elif item.id in known and known[item.id].same(item):
                    counts["unchanged"] += 1
                    self.progress(1, "unchanged")
                elif item.id in known and (other := known[item.id].elsewhere(item)):
                    reason = f"the index holds {other} by this id: index both folders in one command, or --remove it"
                    problems.append(problem_of(item, reason))
                else:
                    yield item

        made = self._encode_all(waiting(), Building.after(manifest, self._run).first, numbers_in_use(self.root))
        fresh = sorted([*pending, *made], key=lambda record: record.name)
        fresh_ids = self._known(fresh)
        gone = {id for id in known if id in fresh_ids or (prune and id not in seen)}
        if self._number == 0:
            shards = self._without(manifest.shards, gone, fresh, problems)
            if not sum(record.rows for record in shards):
                self._building.finish(self.root, files_of(manifest))
                listed = [entry for record in fresh for entry in record.unreadable] + problems
                reason = f"; the first of {len(listed)} problems: {_line(listed[0])}" if listed else ""
                raise ValueError(f"{source}: no readable picture in it, so there is no index to make{reason}")
            appended = not gone and shards[: len(manifest.shards)] == manifest.shards
            if shards != manifest.shards or self.vectors not in (None, manifest.vectors.get("kind")):
                self._publish(manifest, shards, appended)
            else:
                self._building.finish(self.root, files_of(manifest))
        self._wait()
        now = Manifest.load(self.root)
        return Built(
            pictures=now.rows,
            added=len(set(fresh_ids) - set(known)),
            changed=len(set(fresh_ids) & set(known)),
            removed=len(gone - set(fresh_ids)),
            unchanged=counts["unchanged"],
            resumed=counts["resumed"],
            duplicates=now.rows - len({content for s in now.shards for content in self._contents(s)}),
            unreadable=now.unreadable,
        )

    def remove(self, ids: list[str]) -> Built:
        """Take pictures out of the index.

        Raises:
            ValueError: an id that is not in the index; nothing was removed. FileExistsError: as `add`.
        """
        refuse_foreign(self.root)
        with only_writer(self.root):
            manifest = Manifest.load(self.root)
            manifest.model.refuse_other(self.identity, self.root)
            known = self._known(manifest.shards)
            if missing := [id for id in ids if id not in known]:
                raise ValueError(f"not in {self.root}: {', '.join(map(repr, missing[:5]))}; nothing was removed")
            self._building = Building.begin(self.root, manifest, self._run)
            shards = self._without(manifest.shards, set(ids), [], [])
            self._publish(manifest, shards, appended=False)
            now = Manifest.load(self.root)
            return Built(pictures=now.rows, removed=len(set(ids)), unreadable=now.unreadable)

    # -- encoding -------------------------------------------------------------------------------

    def _encode_all(self, pictures: Iterator[Picture], first: int, taken: set[int]) -> list[ShardRecord]:
        """Encode pictures shard by shard under the lowest free names; of all processes, the records of their shards."""
        made: list[ShardRecord] = []
        start = first
        size = self.shard_size or self.encoder.shard_size()
        number, turn = first, 0
        with ThreadPoolExecutor(1, "r2d2-read") as reader:
            while (head := next(pictures, None)) is not None:
                part = chain([head], islice(pictures, size - 1))
                while number in taken:
                    number += 1
                if turn % self._processes == self._number:
                    made.append(write_shard(self.root, f"{number:08}", self.encoder.encode(part, reader)))
                else:
                    deque(part, maxlen=0)  # another process encodes these
                number, turn = number + 1, turn + 1
        self._wait()
        if self._processes == 1:
            return made
        return finished_shards(self.root, start, {f"{number:08}" for number in taken})

    # -- publishing -----------------------------------------------------------------------------

    def _manifest(self) -> Manifest:
        """The index's state, or an empty one; refuses another model's, or another cache."""
        if not (self.root / MANIFEST).exists():
            return Manifest(self.identity, self.encoder.dimension, vars(self.cache))
        manifest = Manifest.load(self.root)
        manifest.model.refuse_other(self.identity, self.root)
        if manifest.cache != vars(self.cache):
            raise ValueError(
                f"{self.root} was made with {CacheOptions(**manifest.cache)} and this run asks for {self.cache}: "
                "use the same, or index the pictures anew elsewhere"
            )
        return manifest

    def _pending(self, manifest: Manifest) -> list[ShardRecord]:
        """Whole shards that an interrupted run of this model, with these options, has left."""
        left = Building.read(self.root)
        if left is None or left.run != self._run:
            return []
        return finished_shards(self.root, left.first, {record.name for record in manifest.shards})

    @property
    def _run(self) -> str:
        return f"{self.identity.weights} {self.identity.preprocessing} {self.cache} {self.batch_size}"

    def _known(self, records: Any) -> dict[str, "_Known"]:
        known = {}
        for record in records:
            rows = Shard(self.root, record).rows.select(["id", "path", "size", "mtime_ns", "content", "texts"])
            for id, path, size, mtime, content, texts in zip(*(c.to_pylist() for c in rows.columns), strict=True):
                known[id] = _Known(path, size, mtime, content, tuple(texts))
        return known

    def _contents(self, record: ShardRecord) -> list[str]:
        return Shard(self.root, record).rows.column("content").to_pylist()

    def _without(
        self,
        shards: tuple[ShardRecord, ...],
        gone: set[str],
        fresh: list[ShardRecord],
        problems: list[dict],
    ) -> tuple[ShardRecord, ...]:
        """The shards without some pictures, then the fresh ones; shards that held one of them are written anew."""
        taken = numbers_in_use(self.root)
        number = max((int(record.name) for record in (*shards, *fresh)), default=-1) + 1
        # what was tried again is listed by its new shard, if at all
        tried = {*self._known(fresh), *(entry["id"] for record in fresh for entry in record.unreadable)}
        kept = []
        for record in shards:
            unreadable = [entry for entry in record.unreadable if entry["id"] not in tried | gone]
            shard = Shard(self.root, record)
            ids = shard.rows.column("id").to_pylist()
            rows = [row for row, id in enumerate(ids) if id not in gone]
            if len(rows) < len(ids):
                if rows or unreadable:
                    while number in taken:
                        number += 1
                    kept.append(write_shard(self.root, f"{number:08}", shard.select(rows, unreadable)))
                    number += 1
            elif unreadable != record.unreadable:
                kept.append(with_unreadable(record, unreadable))
            else:
                kept.append(record)
        if problems and fresh:
            fresh = [*fresh[:-1], with_unreadable(fresh[-1], [*fresh[-1].unreadable, *problems])]
        elif problems and kept:
            listed = [entry for entry in kept[-1].unreadable if entry not in problems]
            kept[-1] = with_unreadable(kept[-1], [*listed, *problems])
        return tuple(record for record in (*kept, *fresh) if record.rows or record.unreadable)

    def _publish(self, manifest: Manifest, shards: tuple[ShardRecord, ...], appended: bool) -> None:
        """Build the vector index, then replace the manifest, then clear away what no longer belongs to it."""
        state = manifest.with_shards(shards)
        vectors = self._build_vectors(state, manifest if appended else None)
        state = replace(state, vectors=vectors)
        state.save(self.root)
        self._write_report(state)
        self._building.finish(self.root, files_of(state))

    def _build_vectors(self, state: Manifest, before: Manifest | None) -> dict:
        kind = self.vectors or choose_kind(state.rows)
        if kind == "flat":  # exact search reads the embeddings themselves
            return {"kind": kind}
        faiss = require_faiss()
        self.progress(0, f"building the {kind} index")
        shards = [Shard(self.root, record) for record in state.shards]
        old = before.vectors.get("file") if before is not None and before.vectors.get("kind") == kind else None
        if old and not GROWS_FROM <= before.rows <= state.rows <= 2 * before.rows:
            old = None  # ranges and lists were learned from too little
        if old:
            index = faiss.read_index(str(self.root / old))
            for shard in shards[len(before.shards) :]:
                index.add(shard.embeds["image"])
        else:
            embeds = (shard.embeds["image"] for shard in shards if shard.record.rows)
            index = build_vectors(embeds, state.dimension, state.rows, kind)
        name = f"vectors.{state.generation:06}.faiss"
        with atomic_path(self.root / name) as partial:
            faiss.write_index(index, str(partial))
            record = FileRecord.of(partial)
        return {"kind": kind, "file": name, "record": vars(record)}

    def _write_report(self, state: Manifest) -> None:
        lines = [json.dumps(entry, ensure_ascii=False) for entry in state.unreadable]
        write_text(self.root / REPORT, "".join(f"{line}\n" for line in lines))

    # -- processes ------------------------------------------------------------------------------

    @property
    def _number(self) -> int:
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def _processes(self) -> int:
        return 1 if self.accelerator is None else self.accelerator.num_processes

    def _wait(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Known:
    """What the index remembers of a picture's file."""

    path: str | None
    size: int | None
    mtime_ns: int | None
    content: str
    texts: tuple[str, ...]

    def elsewhere(self, picture: Picture) -> str | None:
        """The file that was indexed, where it is another one than the picture's and still there."""
        if self.path is None or picture.path is None:
            return None
        try:
            return None if os.path.samefile(self.path, picture.path) else self.path
        except OSError:
            return None

    def same(self, picture: Picture) -> bool:
        """Whether the picture is as it was: by size and time, else by its bytes; and has the same captions."""
        if self.texts != picture.texts:
            return False
        if picture.mtime_ns is not None and (picture.size, picture.mtime_ns) == (self.size, self.mtime_ns):
            return True
        try:
            return digest_of(picture.read()) == self.content
        except ImageReadError:
            return False


def _line(entry: dict) -> str:
    return f"{entry['location']}: {entry['reason']}"


def open_for_reading(root: str | PathLike, identity: ModelIdentity, verify: bool = True) -> PictureIndex:
    """The index of a folder, if it belongs to the model.

    Raises:
        IndexFileError, OtherModelError.
    """
    index = PictureIndex(root, verify)
    index.manifest.model.refuse_other(identity, index.root)
    return index

"""Make an index, add to it, take from it: streamed, resumable after any interruption, one writer at a time."""

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

from ..inference.encoding import is_token_wise
from ..inference.identity import ModelIdentity
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.locking import only_writer
from ..processing.files.writing import atomic_path, write_text
from .cache import CacheOptions
from .comparison import Comparison, Known, Row, known_images
from .encoding import Progress, ShardEncoder
from .images import CollectionImage, list_images
from .manifest import MANIFEST, REPORT, FileRecord, Manifest, ShardRecord
from .ownership import Building, files_of, numbers_in_use, refuse_foreign
from .remaking import in_full, is_there, refuse_no_unicode, source_words
from .store import ImageIndex, Shard, finished_shards, move_shard, write_shard
from .vectors import Kind, build_vectors, choose_kind, require_faiss

logger = logging.getLogger(__name__)

#: Smaller vector indexes are built anew when pictures are added: that is quick.
GROWS_FROM = 10_000


@dataclass(frozen=True)
class IndexChanges:
    """What a change of an index did.

    pictures: in the index now. added, changed, removed, unchanged: pictures. resumed: of those added or changed, taken
    over from an interrupted run. moved: of those unchanged or resumed, whose file is elsewhere now, or has another id.
    unreadable: what was skipped, with location and reason. duplicates: pictures whose file has the same content as an
    earlier one's; they are kept. gone: ids in the index that the source does not name and whose files are no longer
    where they were. not_pruned: why nothing was removed although that was asked for.
    """

    images: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    resumed: int = 0
    moved: int = 0
    duplicates: int = 0
    unreadable: list[dict] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    not_pruned: str | None = None


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
        refuse_no_unicode(self.root.absolute())
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

    def add(self, source: Any, prune: bool = False, rebuild: bool = False, **reading: Any) -> IndexChanges:
        """Add the pictures of a source; what is in the index already, unchanged, is not encoded again.

        A picture is known by its id and its content: where its file has moved, the index remembers the new place. An
        interrupted run goes on where its last whole shard ended, when it is called again, and gives the index that an
        uninterrupted one would have given.

        Args:
            source, reading: see `list_pictures`. prune: remove pictures that were listed from this source and are no
                longer in it, and those of others whose files are gone; unless the source has errors or is empty.
            rebuild: make the index anew, whatever model it had; searching goes on in the old state until then.

        Raises:
            OtherModelError: the index belongs to another model. IndexLockedError: another writer.
            FileExistsError: the folder holds something else than an index; nothing was changed.
            ValueError: no readable picture in the source, nor in the index.
        """
        refuse_foreign(self.root, rebuild)
        words = source_words(source, reading)
        if self._number == 0:
            with only_writer(self.root):
                return self._add(source, words, prune, rebuild, reading)
        return self._add(source, words, prune, rebuild, reading)

    def _add(self, source: Any, words: str, prune: bool, rebuild: bool, reading: dict) -> IndexChanges:
        if self._number:  # the first process clears away what an interrupted run has left before the others look
            self._wait()
        before = self._before(rebuild)
        manifest = self._manifest(before, rebuild)
        pending = self._pending(before)
        if self._number == 0:
            self._building = Building.begin(self.root, before, self._run, pending)
            self._wait()
        self._wait()  # nobody writes before all have seen what is there
        known, left = self._known(manifest.shards), self._known(pending)
        tried = {entry["id"]: entry for record in pending for entry in record.unreadable}
        found = Comparison(known, left, tried, words, self.progress)
        first = Building.after(before, self._run).first
        made = self._encode_all(found.to_encode(list_images(source, **reading)), first, numbers_in_use(self.root))
        fresh_ids = found.ids_of(left) | {id for record in made for id in self._ids(record)}
        gone = set(found.gone())
        pruned, not_pruned = self._pruned(found) if prune else (set(), None)
        if self._number == 0:
            leaving = pruned | fresh_ids | found.renamed | found.ids_of({id: known[id] for id in found.renamed})
            kept = self._revised(manifest.shards, found.kept, leaving)
            resumed = self._revised(pending, found.kept)
            fresh = sorted([*resumed, *(record for record in made if record.rows)], key=lambda record: record.name)
            unreadable = self._unreadable(manifest, made, found)
            if not kept and not fresh:
                self._building.finish(self.root, files_of(before))
                reason = f"; the first of {len(unreadable)} problems: {_line(unreadable[0])}" if unreadable else ""
                raise ValueError(f"{source}: no readable picture in it, so there is no index to make{reason}")
            self._publish(before, manifest, [*kept, *fresh], unreadable)
        self._wait()
        now = Manifest.load(self.root)
        return IndexChanges(
            images=now.rows,
            added=len(fresh_ids - known.keys()),
            changed=len(fresh_ids & known.keys()),
            removed=len(pruned),
            unchanged=found.unchanged,
            resumed=found.resumed,
            moved=found.moved,
            duplicates=now.rows - len({content for s in now.shards for content in self._contents(s)}),
            unreadable=list(now.unreadable),
            gone=sorted(gone - pruned),
            not_pruned=not_pruned,
        )

    def remove(self, ids: list[str]) -> IndexChanges:
        """Take pictures out of the index.

        Raises:
            ValueError: an id that is not in the index; nothing was removed. FileExistsError: as `add`.
        """
        refuse_foreign(self.root)
        with only_writer(self.root):
            manifest = Manifest.load(self.root)
            manifest.refuse_other(self.identity, self.root)
            known = self._known(manifest.shards)
            if missing := [id for id in ids if id not in known]:
                raise ValueError(f"not in {self.root}: {', '.join(map(repr, missing[:5]))}; nothing was removed")
            self._building = Building.begin(self.root, manifest, self._run)
            shards = self._revised(manifest.shards, {}, set(ids))
            self._publish(manifest, manifest, shards, [each for each in manifest.unreadable if each["id"] not in ids])
            now = Manifest.load(self.root)
            return IndexChanges(images=now.rows, removed=len(set(ids)), unreadable=list(now.unreadable))

    # -- encoding -------------------------------------------------------------------------------

    def _encode_all(self, images: Iterator[CollectionImage], first: int, taken: set[int]) -> list[ShardRecord]:
        """Encode pictures shard by shard under the lowest free names; of all processes, the records of their shards."""
        made: list[ShardRecord] = []
        start = first
        size = self.shard_size or self.encoder.shard_size()
        number, turn = first, 0
        with ThreadPoolExecutor(1, "r2d2-read") as reader:
            while (head := next(images, None)) is not None:
                part = chain([head], islice(images, size - 1))
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

    def _before(self, rebuild: bool) -> Manifest:
        """The index's state, or an empty one."""
        if not (self.root / MANIFEST).exists():
            return Manifest(self.identity, self.encoder.dimension, vars(self.cache))
        return Manifest.load(self.root, to_remake=rebuild)

    def _manifest(self, before: Manifest, rebuild: bool) -> Manifest:
        """The state to add to, which is empty for a rebuild; refuses another model's, or another cache."""
        if rebuild:
            return Manifest(self.identity, self.encoder.dimension, vars(self.cache), generation=before.generation)
        before.refuse_other(self.identity, self.root)
        if before.cache != vars(self.cache):
            raise ValueError(
                f"{self.root} was made with {CacheOptions(**before.cache)} and this run asks for {self.cache}: use the "
                "same, or make it anew with --rebuild (rebuild=True)"
            )
        return before

    def _pending(self, manifest: Manifest) -> list[ShardRecord]:
        """Whole shards that an interrupted run of this model, with these options, has left."""
        left = Building.read(self.root)
        if left is None or left.run != self._run:
            return []
        return finished_shards(self.root, left.first, {record.name for record in manifest.shards})

    @property
    def _run(self) -> str:
        return f"{self.identity.weights} {self.identity.preprocessing} {self.cache} {self.batch_size}"

    def _known(self, records: Iterable[ShardRecord]) -> dict[str, Known]:
        return known_images(Shard(self.root, record) for record in records)

    def _contents(self, record: ShardRecord) -> list[str]:
        return Shard(self.root, record).rows.column("content").to_pylist()

    def _ids(self, record: ShardRecord) -> list[str]:
        return Shard(self.root, record).rows.column("id").to_pylist() if record.rows else []

    @staticmethod
    def _pruned(found: Comparison) -> tuple[set[str], str | None]:
        """Ids to remove, since the source no longer has them; or why none is removed."""
        if found.damaged:
            return set(), "the source has errors, and what it does not name may be behind them"
        if not found.seen:
            return set(), "the source is empty: is everything mounted that should be?"
        pruned = found.to_prune()
        if (folder := found.emptied(pruned)) is not None:
            return set(), f"{folder} is empty: is everything mounted that should be?"
        return pruned, None

    def _revised(
        self, shards: Iterable[ShardRecord], kept: dict[Row, CollectionImage | None], leaving: set[str] | None = None
    ) -> list[ShardRecord]:
        """Shards as they are to be; those that lose a picture, or remember another place of one, are written anew.

        Args:
            kept: rows that stay, with the picture to remember instead. leaving: ids of other rows that do not stay;
                None: no other row stays.
        """
        taken, number = numbers_in_use(self.root), 0
        moved = {place: image for place, image in kept.items() if image is not None}
        touched = {name for name, _ in moved}
        revised = []
        for record in shards:
            rows = [
                row
                for row, id in enumerate(self._ids(record))
                if (record.name, row) in kept or (leaving is not None and id not in leaving)
            ]
            if not rows:
                continue
            if len(rows) == record.rows and record.name not in touched:
                revised.append(record)
                continue
            shard = Shard(self.root, record)
            images = [moved.get((record.name, row), known) for row, known in enumerate(shard.images())]
            number = max(number, *taken) + 1
            if len(rows) == record.rows:
                revised.append(move_shard(self.root, f"{number:08}", shard, images))
            else:
                revised.append(write_shard(self.root, f"{number:08}", shard.select(rows, images)))
        return revised

    def _unreadable(self, manifest: Manifest, made: list[ShardRecord], found: Comparison) -> list[dict]:
        """What could not be read, in the order of the sources: all of this one, and of others what is still there."""
        entries = [(found.seen[entry["id"]], entry) for record in made for entry in record.unreadable]
        entries = [entry for _, entry in sorted([*entries, *found.problems], key=lambda each: each[0])]
        others = [
            entry
            for entry in manifest.unreadable
            if not found.covers(entry["source"])
            and entry["id"] not in found.seen
            and is_there(entry.get("path") or entry["location"])
        ]
        new = []
        for entry in entries:
            places = {name: in_full(entry.get(name)) for name in ("location", "path")}
            written = {**entry, **places, "source": found.source}
            new.append({name: _unicode(value) for name, value in written.items()})
        return sorted([*others, *new], key=lambda entry: entry["source"])

    def _publish(self, before: Manifest, manifest: Manifest, shards: list[ShardRecord], unreadable: list[dict]) -> None:
        """Build the vector index, then replace the manifest, then clear away what no longer belongs to it.

        Where nothing has changed, nothing is written.
        """
        model = manifest.model
        if self.identity.source and (model.source is None or model.is_gone):
            model = self.identity
        sources = {source: None for record in shards for source in self._sources(record)}
        state = replace(
            manifest,
            model=model,
            shards=tuple(replace(record, unreadable=[]) for record in shards),
            unreadable=tuple(unreadable),
            sources=tuple(sources),
        )
        if state != before or self.vectors not in (None, before.vectors.get("kind")):
            state = replace(state, generation=state.generation + 1)
            state = replace(state, vectors=self._build_vectors(state, manifest))
            state.save(self.root)
        self._write_report(state)
        self._building.finish(self.root, files_of(state))

    def _write_report(self, state: Manifest) -> None:
        path = self.root / REPORT
        report = "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in state.unreadable)
        if not path.exists() or path.read_text(encoding="utf-8") != report:
            write_text(path, report)

    def _sources(self, record: ShardRecord) -> list[str]:
        return Shard(self.root, record).rows.column("source").unique().to_pylist()

    def _build_vectors(self, state: Manifest, before: Manifest) -> dict:
        """Kind and file of the vector index; the file of before where it holds the same rows, or grows well."""
        kind = self.vectors or choose_kind(state.rows)
        if kind == "flat":  # exact search reads the embeddings themselves
            return {"kind": kind}
        held, wanted = ([shard.files["embeds"] for shard in each.shards] for each in (before, state))
        follows = before.vectors.get("kind") == kind and wanted[: len(held)] == held
        if follows and len(wanted) == len(held):
            return before.vectors
        faiss = require_faiss()
        self.progress(0, f"building the {kind} index")
        embeds = [Shard(self.root, record).embeds["image"] for record in state.shards]
        # ranges and lists that were learned from too little are learned anew
        if follows and GROWS_FROM <= before.rows <= state.rows <= 2 * before.rows:
            index = faiss.read_index(str(self.root / before.vectors["file"]))
            for added in embeds[len(held) :]:
                index.add(added)
        else:
            index = build_vectors(embeds, state.dimension, state.rows, kind)
        name = f"vectors.{state.generation:06}.faiss"
        with atomic_path(self.root / name) as partial:
            faiss.write_index(index, str(partial))
            record = FileRecord.of(partial)
        return {"kind": kind, "file": name, "record": vars(record)}

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


def _unicode(value: Any) -> Any:
    """A value for JSON in UTF-8; names that are none come with backslashes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _line(entry: dict) -> str:
    return f"{entry['location']}: {entry['reason']}"


def open_for_reading(root: str | PathLike, identity: ModelIdentity, verify: bool = True) -> ImageIndex:
    """The index of a folder, if it belongs to the model.

    Raises:
        IndexFileError, OtherModelError.
    """
    index = ImageIndex(root, verify)
    index.manifest.refuse_other(identity, index.root)
    return index


def remember_model(root: Path, identity: ModelIdentity) -> None:
    """Note where the model of an index is now. Where this process may not write, everything stays as it is."""
    try:
        with only_writer(root):
            manifest = Manifest.load(root)
            same = (manifest.model.weights, manifest.model.preprocessing) == (identity.weights, identity.preprocessing)
            if same and manifest.model.is_gone and identity.source is not None:
                replace(manifest, model=identity).save(root)
    except OSError as error:
        logger.info("the new place of the model is not noted: %s", error)

"""Make an index, add to it, take from it, in three steps: plan, encode, publish.

`plan.make_plan` finds out what is new, changed, moved, gone, and writes nothing. The encoder writes parts, each whole
or not at all, with which an interrupted run goes on. Publishing puts them into the files of the index and replaces the
manifest. One writer at a time.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.encoding import is_token_wise
from ..inference.identity import ModelIdentity
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker
from ..processing.files.locking import only_writer
from ..processing.files.writing import write_text
from .cache import CacheOptions
from .encoding import Encoder
from .images import CollectionImage, list_images
from .manifest import MANIFEST, REPORT, Manifest
from .ownership import Building, refuse_foreign
from .plan import Known, Plan, Progress, make_plan
from .publishing import MOST_REMOVED, changed, compacted, with_vectors
from .remaking import refuse_no_unicode, source_words
from .store import (
    PIECE,
    ImageIndex,
    Part,
    StatesWriter,
    captions_of,
    images_of,
    part_path,
    read_part,
    rows_of,
    write_part,
)
from .vectors import Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexChanges:
    """What a change of an index did.

    Attributes:
        images: Pictures in the index now.
        added: How many pictures.
        changed: How many.
        removed: How many.
        unchanged: How many.
        resumed: Of those added or changed, taken over from an interrupted run.
        moved: Of those unchanged or resumed, whose file is elsewhere now, or has another id.
        duplicates: Pictures whose file has the same content as an earlier one's; they are kept.
        unreadable: What was skipped, with location and reason.
        gone: Ids in the index that the source does not name and whose files are no longer where they were.
        not_pruned: Why nothing was removed although that was asked for.
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
        model: What encodes.
        processor: The model's.
        root: Folder of the index.
        cache: What to keep for the ranker. A model without one (PRD2) keeps nothing.
        vectors: "flat", "hnsw" or "ivf"; None: by size. A token-wise model (FILIP, Wukong) compares all, as "flat".
        batch_size: Pictures that the tower sees at a time.
        part_size: Pictures after which an interrupted run can go on; default: 1,024, or what takes 256 MB, in whole
            batches.
        accelerator: Of `accelerate`, to share the work among its processes; each encodes every n-th part.
        progress: Called with how many pictures were done since the last call, and with what is being done; with
            "planned" and the number of those to encode as soon as it is known.

    Raises:
        ValueError: Something to keep for a ranker that the model does not have; an approximate vector index for a
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
        part_size: int | None = None,
        accelerator: Any = None,
        progress: Progress | None = None,
    ):
        self.root = Path(root)
        refuse_no_unicode(self.root.absolute())
        self.identity = ModelIdentity.of(model, processor)
        self.cache = cache or CacheOptions()
        if self.cache.keep != "none":
            require_ranker(model.config, f"keep={self.cache.keep!r}", "use keep='none'")
        if is_token_wise(model):
            if vectors not in (None, "flat"):
                raise ValueError(
                    f"vectors is {vectors!r}, but this model compares token by token: all pictures, exactly"
                )
            vectors = "flat"
        self.vectors = vectors
        self.progress = progress or (lambda count, doing: None)
        self.encoder = Encoder(model, processor, self.cache, batch_size, self.progress)
        self.part_size = part_size or self.encoder.part_size
        self.accelerator = accelerator
        self._number = 0 if accelerator is None else accelerator.process_index
        self._processes = 1 if accelerator is None else accelerator.num_processes

    def add(self, source: Any, prune: bool = False, rebuild: bool = False, **reading: Any) -> IndexChanges:
        """Add the pictures of a source; what is in the index already, unchanged, is not encoded again.

        A picture is known by its id and its content: where its file has moved, the index remembers the new place. An
        interrupted run goes on where its last whole part ended, when it is called again, and gives the index that an
        uninterrupted one would have given.

        Args:
            source: See `list_images`. Archives and tables whose pictures cannot be read where they lie are read twice.
            prune: Remove pictures that were listed from this source and are no longer in it, and those of others whose
                files are gone; unless the source has errors or is empty.
            rebuild: Make the index again, whatever model it had; searching goes on in the old state until then.
            reading: See `list_images`.

        Raises:
            OtherModelError: The index belongs to another model.
            IndexLockedError: Another writer.
            FileExistsError: The folder holds something else than an index; nothing was changed.
            ValueError: No readable picture in the source, nor in the index.
        """
        refuse_foreign(self.root, rebuild)
        words = source_words(source, reading)
        if self._number == 0:
            with only_writer(self.root):
                return self._add(source, words, prune, rebuild, reading)
        return self._add(source, words, prune, rebuild, reading)

    def _add(self, source: Any, words: str, prune: bool, rebuild: bool, reading: dict) -> IndexChanges:
        before = self._before(rebuild)
        index = ImageIndex(self.root, verify=False, manifest=self._base(before, rebuild))
        left = Building.read(self.root)
        building = Building.of(self.root, before, f"{self._run} {rebuild}")
        pending = self._parts(building, range(10**8), verify=True) if building == left else {}
        known = _known(index.table, range(len(index)) if index.slots is None else index.slots.tolist())
        pending_known: dict[str, Known] = {}
        for number, part in pending.items():
            pending_known |= _known(part.rows, [(number, row) for row in range(len(part.rows))])
        tried = {entry["id"]: entry for part in pending.values() for entry in part.unreadable}
        plan = make_plan(list_images(source, **reading), known, words, pending_known, tried, prune, self.progress)
        self.progress(len(plan.encode), "planned")
        self._wait()  # nobody writes before all have seen what is there
        idle = plan.is_empty and left is None and self.vectors in (None, before.vectors.get("kind"))
        if self._number == 0 and not idle:
            building.begin(self.root, self._of_run(building, index.manifest, pending))
        self._wait()
        states = StatesWriter(self.root, index.manifest, self.encoder.layout, building.first)
        numbers = self._encode(self._images(plan, source, reading), building, index.manifest.slots, states, pending)
        made = self._parts(building, numbers)
        self._wait()  # all have seen what was encoded before it is published
        fresh = {id for part in made.values() for id in part.ids}
        if self._number == 0:
            unreadable = plan.unreadable(
                index.manifest.unreadable, [entry for part in made.values() for entry in part.unreadable]
            )
            parts = [part for _, part in sorted([*_kept(pending, plan), *made.items()]) if len(part.rows)]
            leaving = plan.leaving(fresh)
            if index.manifest.images == len(leaving) and not parts:
                building.finish(self.root, before.files)
                reason = f"; the first of {len(unreadable)} problems: {_line(unreadable[0])}" if unreadable else ""
                raise ValueError(f"{source}: no readable picture in it, so there is no index to make{reason}")
            moved = {row: image for row, image in plan.keep.items() if image is not None and isinstance(row, int)}
            state = changed(index, building.first, leaving, moved, parts, states)
            self._publish(building, before, replace(state, unreadable=tuple(unreadable)))
        self._wait()
        now = ImageIndex(self.root, verify=False)
        fresh |= plan.resumed_ids
        return IndexChanges(
            images=len(now),
            added=len(fresh - known.keys()),
            changed=len(fresh & known.keys()),
            removed=len(plan.prune),
            unchanged=plan.unchanged,
            resumed=plan.resumed,
            moved=plan.moved,
            duplicates=len(now) - len(now.column("content").unique()),
            unreadable=list(now.manifest.unreadable),
            gone=sorted(plan.gone),
            not_pruned=plan.not_pruned,
        )

    def remove(self, ids: list[str]) -> IndexChanges:
        """Take pictures out of the index.

        Raises:
            ValueError: An id that is not in the index; nothing was removed.
            FileExistsError: As `add`.
        """
        refuse_foreign(self.root)
        with only_writer(self.root):
            before = Manifest.load(self.root)
            before.refuse_other(self.identity, self.root)
            index = ImageIndex(self.root, verify=False, manifest=before)
            if missing := [id for id in ids if id not in index.place_of]:
                raise ValueError(f"not in {self.root}: {', '.join(map(repr, missing[:5]))}; nothing was removed")
            building = Building.of(self.root, before, "remove")
            building.begin(self.root)
            rows = sorted({index.place_of[id] for id in ids})
            leaving = rows if index.slots is None else index.slots[rows].tolist()
            states = StatesWriter(self.root, before, before.layout, building.first)
            state = changed(index, building.first, leaving, {}, [], states)
            unreadable = tuple(entry for entry in before.unreadable if entry["id"] not in ids)
            now = self._publish(building, before, replace(state, unreadable=unreadable))
            return IndexChanges(images=now.images, removed=len(set(ids)), unreadable=list(now.unreadable))

    # -- before ---------------------------------------------------------------------------------

    def _before(self, rebuild: bool) -> Manifest:
        """The index's state, or an empty one."""
        if (self.root / MANIFEST).exists():
            return Manifest.load(self.root, to_remake=rebuild)
        return Manifest(self.identity, self.encoder.dimension, vars(self.cache))

    def _base(self, before: Manifest, rebuild: bool) -> Manifest:
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

    @property
    def _run(self) -> str:
        identity = f"{self.identity.weights} {self.identity.preprocessing}"
        return f"{identity} {self.cache} {self.encoder.batch_size} {self.part_size}"

    def _parts(self, building: Building, numbers: Iterable[int], verify: bool = False) -> dict[int, Part]:
        """Whole parts of a run, by their numbers within it."""
        found = (int(path.stem) - building.first for path in building.leftovers(self.root) if path.suffix == ".part")
        parts = {number: read_part(part_path(self.root, building.first + number), verify) for number in sorted(found)}
        return {number: part for number, part in parts.items() if part is not None and number in numbers}

    def _of_run(self, building: Building, base: Manifest, pending: dict[int, Part]) -> set[str]:
        """Files of an interrupted run to go on with. Where there are none, what it has put behind others is cut off."""
        if not pending:
            for name, record in base.files.items():
                if (self.root / name).stat().st_size > record.size:
                    os.truncate(self.root / name, record.size)
            return set()
        states = {path for path in building.leftovers(self.root) if path.suffix == ".states"}
        parts = {part_path(self.root, building.first + number) for number in pending}
        return {path.relative_to(self.root).as_posix() for path in states | parts}

    # -- encoding -------------------------------------------------------------------------------

    def _images(self, plan: Plan, source: Any, reading: dict) -> Iterator[CollectionImage]:
        """The pictures to encode, with their bytes where they cannot be read again from the disk."""
        if all(image.path is not None for image in plan.encode):
            yield from plan.encode
            return
        wanted = {image.id: image for image in plan.encode}
        for item in list_images(source, **{**reading, "note": lambda _: None}):
            if isinstance(item, CollectionImage) and (image := wanted.pop(item.id, None)) is not None:
                yield replace(image, data=item.data)

    def _encode(
        self,
        images: Iterator[CollectionImage],
        building: Building,
        slot: int,
        states: StatesWriter,
        taken: Iterable[int],
    ) -> set[int]:
        """Encode pictures part by part under the lowest free numbers, in turn with other processes; all numbers."""
        numbers: set[int] = set()
        number = 0
        with ThreadPoolExecutor(1, "r2d2-read") as reader:
            while (head := next(images, None)) is not None:
                part = chain([head], islice(images, self.part_size - 1))
                while number in taken:
                    number += 1
                if len(numbers) % self._processes == self._number:
                    made = self.encoder.encode(part, reader, states, slot + number * self.part_size)
                    write_part(part_path(self.root, building.first + number), made)
                else:
                    deque(part, maxlen=0)  # another process encodes these
                numbers.add(number)
                number += 1
        self._wait()
        return numbers

    # -- publishing -----------------------------------------------------------------------------

    def _publish(self, building: Building, before: Manifest, state: Manifest) -> Manifest:
        """Make a state the index's: its vector index, the manifest, then clear away what no longer belongs to it.

        Where nothing has changed, nothing is written.
        """
        model = state.model
        if self.identity.source and (model.source is None or model.is_gone):
            state = replace(state, model=self.identity)
        if state != before or self.vectors not in (None, before.vectors.get("kind")):
            sources = ImageIndex(self.root, verify=False, manifest=state).column("source").unique().to_pylist()
            state = replace(state, sources=tuple(sources), generation=before.generation + 1)
            state = with_vectors(self.root, state, before, self.vectors, lambda doing: self.progress(0, doing))
            state = replace(state, files={name: state.files[name] for name in state.named()})
            state.save(self.root)
        self._write_report(state)
        building.finish(self.root, state.files)
        if state.removed <= MOST_REMOVED * state.rows:
            return state
        building = Building.of(self.root, state, "compact")
        building.begin(self.root)
        return self._publish(
            building, state, compacted(ImageIndex(self.root, verify=False, manifest=state), building.first)
        )

    def _write_report(self, state: Manifest) -> None:
        path = self.root / REPORT
        report = "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in state.unreadable)
        if not path.exists() or path.read_text(encoding="utf-8") != report:
            write_text(path, report)

    def _wait(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def _known(rows: Any, places: Sequence) -> dict[str, Known]:
    """What rows remember, by id; of one id in several, the last."""
    known = {}
    for start in range(0, len(rows), PIECE):
        piece = rows.slice(start, PIECE)
        contents = piece.column("content").to_pylist()
        for place, image, content in zip(places[start : start + PIECE], images_of(piece), contents, strict=True):
            known[image.id] = Known(place, image, content)
    return known


def _kept(pending: dict[int, Part], plan: Plan) -> Iterator[tuple[int, Part]]:
    """What an interrupted run has encoded and the source still has, as it is to be remembered."""
    for number, part in pending.items():
        images = {
            row: plan.keep[number, row] or image
            for row, image in enumerate(images_of(part.rows))
            if (number, row) in plan.keep
        }
        mask = np.isin(np.arange(len(part.rows)), [*images])
        kept = part.rows.filter(mask)
        rows = rows_of(list(images.values()), kept.column("content"), kept.column("state"))
        yield number, Part(rows, part.embeds[mask], part.text_embeds[np.repeat(mask, captions_of(part.rows))], [])


def _line(entry: dict) -> str:
    return f"{entry['location']}: {entry['reason']}"


def open_for_reading(root: Path, identity: ModelIdentity, verify: bool = True) -> ImageIndex:
    """The index of a folder, if it belongs to the model.

    Raises:
        IndexFileError: as `ImageIndex`.
        OtherModelError: it belongs to another model.
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

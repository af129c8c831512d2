"""What becomes of the files of an index when a change is published: new ones beside those of the state before.

Nothing that the state before needs is touched: embeddings, captions' embeddings and records of what is kept for the
ranker grow at their ends, all else is written under new names. Removed pictures are marked, and their rows and records
stay until a quarter of all rows is removed.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.files.writing import atomic_path, explained
from .images import CollectionImage
from .manifest import DATA, FileRecord, Manifest
from .ownership import vectors_of
from .store import PIECE, PIECE_BYTES, ImageIndex, Part, StatesWriter, captions_of, images_of, rows_of, rows_schema
from .vectors import Kind, build_vectors, choose_kind, require_faiss

#: Smaller vector indexes are built again when pictures are added: that is quick.
GROWS_FROM = 10_000
#: Share of removed rows above which all files are written again without them.
MOST_REMOVED = 0.25


def changed(
    index: ImageIndex,
    first: int,
    removed: list[int],
    moved: dict[int, CollectionImage],
    parts: list[Part],
    states: StatesWriter,
) -> Manifest:
    """Write the files of an index that loses rows, remembers other places of some, and gets the pictures of parts.

    Args:
        index: The state to change.
        first: The least number of new files.
        removed: Rows to mark.
        moved: What rows remember instead.
        parts: What is added.
        states: Has written what is kept of the pictures of the parts.

    Returns:
        The new state but for its vector index; the same where nothing changes.
    """
    root, state, numbers = index.root, index.manifest, count(first)
    files, written, merged = dict(state.files), [], []
    added = sum(len(part.rows) for part in parts)
    stays = len(state.tables)
    total = added
    while added and stays and state.tables[stays - 1][1] <= total:  # merged: as many as the logarithm of the rows
        stays -= 1
        total += state.tables[stays][1]

    def write(pieces: list[Any]) -> None:
        name = f"{DATA}/{next(numbers):08}.rows"
        files[name] = _write_rows(root / name, pieces)
        written.append((name, sum(map(len, pieces))))

    start = 0
    for place, (name, length) in enumerate(state.tables):
        rows = index.rows.slice(start, length)
        here = {row - start: image for row, image in moved.items() if start <= row < start + length}
        start += length
        if here:
            images = images_of(rows)
            images = [here.get(row, image) for row, image in enumerate(images)]
            rows = rows_of(images, rows.column("content"), rows.column("state"))
        if place >= stays:
            merged.append(rows)
        elif here:
            write([rows])
        else:
            written.append((name, length))
    if added:
        write([*merged, *(part.rows for part in parts)])
        for kind, matrices in (("embeds", [p.embeds for p in parts]), ("texts", [p.text_embeds for p in parts])):
            if any(map(len, matrices)):
                name = getattr(state, kind) or f"{DATA}/{first:08}.{kind}"
                files[name] = _append(root / name, files.get(name, FileRecord()), matrices)
                named: dict[str, Any] = {kind: name}
                state = replace(state, **named)
        if states.layout:
            slots = max(
                state.slots, *(1 + max(part.rows.column("state").to_pylist()) for part in parts if len(part.rows))
            )
            state = replace(state, **states.state(slots))
            files |= states.files(slots)
    if removed or (added and state.removed):
        alive = np.concatenate([index.alive(), np.ones(added, bool)])
        alive[removed] = False
        name = f"{DATA}/{first:08}.alive"
        with atomic_path(root / name) as partial:
            partial.write_bytes(np.packbits(alive, bitorder="little").tobytes())
            files[name] = FileRecord.of(partial)
        state = replace(state, alive=name, removed=int((~alive).sum()))
    return replace(state, tables=tuple(written), files=files)


def compacted(index: ImageIndex, first: int) -> Manifest:
    """Write all files of an index again without what was removed.

    Returns:
        The new state but for its vector index.
    """
    root, state, slots = index.root, index.manifest, index.slots
    assert slots is not None  # something was removed
    empty = replace(state, states=(), slots=0, per_file=0)
    states, files, kept = StatesWriter(root, empty, state.layout, first), {}, {}
    if state.layout:
        step = max(PIECE_BYTES // states.dtype.itemsize, 1)
        for start in range(0, len(slots), step):
            places = index.rows.column("state").take(slots[start : start + step]).to_numpy()
            states.write_records(start, index.records(places))
        states.sync()
        files, kept = states.files(len(slots)), states.state(len(slots))
    name, embeds, texts = (f"{DATA}/{first:08}.{kind}" for kind in ("rows", "embeds", "texts"))
    files[embeds] = _append(root / embeds, FileRecord(), index.all_embeds())
    captions = np.flatnonzero(np.repeat(index.alive(), captions_of(index.rows)))
    if len(captions):
        files[texts] = _append(root / texts, FileRecord(), (index.text_embeds[part] for _, part in _pieces(captions)))

    def rows() -> Iterator[Any]:
        for start, part in _pieces(slots):
            rows = index.rows.take(part)
            if state.layout:
                rows = rows.set_column(rows.num_columns - 1, "state", [np.arange(start, start + len(part))])
            yield rows

    files[name] = _write_rows(root / name, rows())
    changes: dict[str, Any] = {
        **kept,
        "texts": texts if len(captions) else None,
        "alive": None,
        "removed": 0,
        "files": files,
    }
    return replace(state, tables=((name, len(slots)),), embeds=embeds, **changes)


def with_vectors(root: Path, state: Manifest, before: Manifest, kind: Kind | None, doing: Any) -> Manifest:
    """A state with its vector index: that of the state before where it holds the same rows, or grows well.

    Args:
        kind: Of the vector index; None: by size.
        doing: Called with what is being done.
    """
    kind = kind or choose_kind(state.images)
    if kind == "flat":  # exact search reads the embeddings themselves
        return replace(state, vectors={"kind": kind})
    held = before.vectors
    follows = (held.get("kind"), held.get("embeds")) == (kind, state.embeds)
    if follows and held["rows"] == state.rows:
        return replace(state, vectors=held)
    faiss = require_faiss()
    doing(f"building the {kind} index")
    assert state.embeds is not None  # flat serves few, and none
    embeds = np.memmap(root / state.embeds, state.dtype, "r", shape=(state.rows, state.dimension))
    # ranges and lists that were learned from too little are learned again
    if follows and GROWS_FROM <= held["rows"] <= state.rows <= 2 * held["rows"]:
        index = faiss.read_index(str(root / held["file"]))
        index.add(embeds[held["rows"] :])
    else:
        index = build_vectors([embeds], state.dimension, state.rows, kind)
    name = vectors_of(state.generation)
    with atomic_path(root / name) as partial:
        faiss.write_index(index, str(partial))
        record = FileRecord.of(partial)
    vectors = {"kind": kind, "file": name, "rows": state.rows, "embeds": state.embeds}
    return replace(state, vectors=vectors, files={**state.files, name: record})


def _pieces(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, numbers[start : start + PIECE]) for start in range(0, len(numbers), PIECE))


def _append(path: Path, record: FileRecord, matrices: Iterable[np.ndarray]) -> FileRecord:
    """Put matrices behind what counts of a file, on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path), os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        file.truncate(record.size)
        file.seek(record.size)
        for matrix in matrices:
            file.write(np.ascontiguousarray(matrix).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return record.extended(path)


def _write_rows(path: Path, pieces: Iterable[Any]) -> FileRecord:
    """Write Arrow rows in batches that are neither small nor large."""
    import pyarrow as pa

    with atomic_path(path) as partial:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, rows_schema()) as writer:
            waiting: list[Any] = []
            for rows in pieces:
                waiting.append(rows)
                if sum(map(len, waiting)) >= PIECE:
                    writer.write_table(pa.concat_tables(waiting).combine_chunks(), PIECE)
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), PIECE)
        return FileRecord.of(partial)


__all__ = ["MOST_REMOVED", "changed", "compacted", "with_vectors"]

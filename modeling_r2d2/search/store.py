"""Files of an index: rows, parts of a run under way, what is kept for the ranker; and the index, memory-mapped."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processing.files.record_files import RecordsWriter, are_damaged, read_records, record_dtype
from ..processing.files.writing import atomic_path
from .images import CollectionImage
from .manifest import DATA, FileRecord, IndexFileError, Manifest

_OF_IMAGE = ["id", "path", "offset", "size", "mtime_ns", "texts", "location", "source", "metadata"]
#: How often an index is opened again that a writer replaces meanwhile.
_ATTEMPTS = 50
#: Bytes of a file of what is kept for the ranker, and of embeddings that are handed out at a time.
STATES_BYTES, PIECE_BYTES = 1 << 31, 1 << 28
#: Rows that are handled at a time.
PIECE = 1 << 16
_DIGEST = 64


# -- rows -------------------------------------------------------------------------------------------


def rows_schema() -> Any:
    """The Arrow schema of rows: what `CollectionImage` holds (metadata as JSON), content hash, number of the record of
    what is kept for the ranker."""
    import pyarrow as pa

    types = {"offset": pa.int64(), "size": pa.int64(), "mtime_ns": pa.int64(), "texts": pa.list_(pa.string())}
    names = (*_OF_IMAGE, "content", "state")
    return pa.schema([(name, {**types, "state": pa.int64()}.get(name, pa.string())) for name in names])


def rows_of(images: Sequence[CollectionImage], contents: Any, states: Any) -> Any:
    """Arrow rows of pictures with their content hashes, and the numbers of their records or None."""
    import pyarrow as pa

    columns = {name: [getattr(image, name) for image in images] for name in _OF_IMAGE}
    columns["location"] = [None if image.location == image.path else image.location for image in images]
    schema = rows_schema()
    arrays = [pa.array(columns[name], schema.field(name).type) for name in _OF_IMAGE]
    return pa.table([*arrays, contents, pa.array(states, pa.int64()) if isinstance(states, list) else states], schema)


def images_of(rows: Any) -> list[CollectionImage]:
    """The pictures of Arrow rows, in order."""
    out: list[CollectionImage] = []
    sources: dict[str, str] = {}
    for row in rows.select(_OF_IMAGE).to_pylist():
        row["texts"] = tuple(row["texts"])
        row["source"] = sources.setdefault(row["source"], row["source"])  # one string, not one each
        row["location"] = row["path"] if row["location"] is None else row["location"]
        out.append(CollectionImage(**row))
    return out


# -- parts of a run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a run has encoded of some pictures: Arrow rows, embeds (I, D), text_embeds (M, D) of their captions in
    order, and what could not be read. What is kept for the ranker is in its file already."""

    rows: Any
    embeds: np.ndarray
    text_embeds: np.ndarray
    unreadable: list[dict]

    @property
    def ids(self) -> list[str]:
        """Ids of its pictures."""
        return self.rows.column("id").to_pylist()


def part_path(root: Path, number: int) -> Path:
    """Where a part lies."""
    return root / DATA / f"{number:08}.part"


def write_part(path: Path, part: Part) -> None:
    """Write a part whole or not at all: a blake2b digest of 64 bytes, then an Arrow file of rows with embeddings.

    Raises:
        OSError: The disk is full or may not be written to.
    """
    import pyarrow as pa

    ends = part.rows.column("texts").combine_chunks().offsets if len(part.rows) else pa.array([0], pa.int32())
    rows = part.rows.append_column("embed", _binary(part.embeds))
    rows = rows.append_column("text_embeds", pa.ListArray.from_arrays(ends, _binary(part.text_embeds)))
    rows = rows.replace_schema_metadata({"unreadable": json.dumps(part.unreadable)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    data = sink.getvalue()
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(hashlib.blake2b(data).digest())
        file.write(data)


def read_part(path: Path, verify: bool = False) -> Part | None:
    """A part, memory-mapped; None where it is torn, as a system that lost power leaves it."""
    import pyarrow as pa

    try:
        data = mapped(path)
        if verify and hashlib.blake2b(data[_DIGEST:]).digest() != bytes(data[:_DIGEST]):
            return None
        rows = pa.ipc.open_file(data[_DIGEST:]).read_all()
        unreadable = json.loads(rows.schema.metadata[b"unreadable"])
        embeds, text_embeds = (rows.column(name).combine_chunks() for name in ("embed", "text_embeds"))
        matrices = _matrix(embeds), _matrix(text_embeds.flatten())
        return Part(rows.select(rows_schema().names).replace_schema_metadata(), *matrices, unreadable)
    except (IndexFileError, pa.ArrowInvalid, ValueError, KeyError, TypeError):
        return None


def _binary(matrix: np.ndarray) -> Any:
    import pyarrow as pa

    matrix = np.ascontiguousarray(matrix, np.float32)
    buffers = [None, pa.py_buffer(matrix.tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * matrix.shape[1]), len(matrix), buffers)


def _matrix(array: Any) -> np.ndarray:
    width = array.type.byte_width // 4
    if not len(array):
        return np.empty((0, width), np.float32)
    found = np.frombuffer(array.buffers()[1], np.float32, count=(array.offset + len(array)) * width)
    return found.reshape(-1, width)[array.offset :]


# -- what is kept for the ranker --------------------------------------------------------------------


class StatesWriter(RecordsWriter):
    """Puts records of what is kept for the ranker at their places in the files of an index.

    Args:
        state: What the index holds so far.
        layout: The fields of a record; () where nothing is kept.
        first: The number of the first new file.
    """

    def __init__(self, root: Path, state: Manifest, layout: tuple[tuple, ...], first: int):
        self.names, self.first = state.states, first
        per_file = state.per_file or max(STATES_BYTES // max(record_dtype(layout).itemsize, 1), 1)
        super().__init__(layout, per_file, lambda number: root / self.name(number))

    def name(self, number: int) -> str:
        """Name of the file of a number, old or new."""
        new = self.first + number - len(self.names)
        return self.names[number] if number < len(self.names) else f"{DATA}/{new:08}.states"

    def files(self, slots: int) -> dict[str, FileRecord]:
        """The files that hold `slots` records, at the sizes that count."""
        out, size = {}, self.dtype.itemsize
        for number in range(-(-slots // self.per_file)):
            records = min(slots - number * self.per_file, self.per_file)
            out[self.name(number)] = FileRecord(records * size)
        return out

    def state(self, slots: int) -> dict[str, Any]:
        """What a manifest says of them."""
        return {"slots": slots, "states": tuple(self.files(slots)), "layout": self.layout, "per_file": self.per_file}


def captions_of(rows: Any) -> np.ndarray:
    """How many captions each of Arrow rows has."""
    import pyarrow.compute as pc

    return pc.list_value_length(rows.column("texts")).to_numpy()


# -- reading ----------------------------------------------------------------------------------------


def mapped(path: Path, size: int | None = None) -> Any:
    """The content of a file, or its first `size` bytes, as an Arrow buffer, mapped and not read. No handle stays open.

    Raises:
        IndexFileError: There is none, it is shorter, or it cannot be read.
        PermissionError: Not by this user.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            data = file.read_buffer()
    except FileNotFoundError:
        raise IndexFileError(f"{path} is missing: index the pictures anew, or restore the file") from None
    except PermissionError as error:
        raise PermissionError(
            error.errno, f"{path} may not be read by this user: {os.strerror(error.errno or errno.EACCES)}"
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error
    if size is not None and len(data) < size:
        raise IndexFileError(f"{path} is torn: {len(data)} bytes instead of {size}; index anew")
    return data[:size]


class ImageIndex:
    """An index on disk as it was at one moment, read only.

    Its pictures are counted without those that were removed. All files are mapped when it is opened, so that what a
    writer removes later stays readable, and none stays open.

    Args:
        root: Its folder.
        verify: Compare the checksums of all files on opening (a second for each few gigabytes); without it only sizes.
            What is kept for the ranker is checked picture by picture when it is read.
        manifest: A state of it; default: the present one.

    Raises:
        IndexFileError: No index, a torn, edited or missing file, another format.
    """

    def __init__(self, root: str | Path, verify: bool = True, manifest: Manifest | None = None):
        self.root = Path(root)
        for attempt in range(_ATTEMPTS):
            self.manifest = manifest or Manifest.load(self.root)
            try:
                self._open()
                break
            except IndexFileError as error:
                # a writer has replaced the index since the manifest was read
                if attempt == _ATTEMPTS - 1 or manifest or Manifest.load(self.root) == self.manifest:
                    raise self._with_remedy(error) from error
        if verify:
            try:
                for name, record in self.manifest.files.items():
                    record.check_content(self.root / name, self._data[name])
            except IndexFileError as error:
                raise self._with_remedy(error) from error

    def _open(self) -> None:
        """Map every file, quickly: from here on a writer may replace the index."""
        import pyarrow as pa

        state = self.manifest
        self._data = {name: mapped(self.root / name, record.size) for name, record in state.files.items()}
        tables = [rows_schema().empty_table()]
        for name, _ in state.tables:
            try:
                tables.append(pa.ipc.open_file(self._data[name]).read_all())
            except (pa.ArrowInvalid, OSError) as error:
                raise IndexFileError(f"{self.root / name} cannot be read: {error}") from error
        #: All rows, those of removed pictures included, and their embeddings (R, D); embeddings (M, D) of the captions.
        self.rows = pa.concat_tables(tables)
        self.row_embeds = self._floats(state.embeds, state.dimension)
        size = len(self._data[state.texts]) // 4 if state.texts else 0
        count = int(captions_of(self.rows).sum())
        self.text_embeds = self._floats(state.texts, size // count if count else state.dimension)
        #: Which rows are not removed, ascending; None: all.
        self.slots = np.flatnonzero(self.alive()) if state.removed else None

    def _floats(self, name: str | None, width: int) -> np.ndarray:
        data = b"" if name is None else self._data[name]
        return np.frombuffer(data, self.manifest.dtype).reshape(-1, width)

    def alive(self) -> np.ndarray:
        """Which rows are not removed: (R,) bool."""
        state = self.manifest
        if state.alive is None:
            return np.ones(state.rows, bool)
        bits = np.frombuffer(self._data[state.alive], np.uint8)
        return np.unpackbits(bits, count=state.rows, bitorder="little").astype(bool)

    def _with_remedy(self, error: IndexFileError) -> IndexFileError:
        return IndexFileError(f"{error}: {self.manifest.remake_command(self.root)}")

    @property
    def vectors(self) -> Any:
        """The content of the vector index's file; None where the embeddings themselves are searched."""
        return self._data.get(self.manifest.vectors.get("file", ""))

    def __len__(self) -> int:
        return self.manifest.images

    @cached_property
    def table(self) -> Any:
        """All pictures: an Arrow table over the mapped files, copied where some were removed."""
        return self.rows if self.slots is None else self.rows.take(self.slots)

    def column(self, name: str) -> Any:
        """One column of the table."""
        return self.rows.column(name) if self.slots is None else self.rows.column(name).take(self.slots)

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The row of every id."""
        return {id: row for row, id in enumerate(self.column("id").to_pylist())}

    def _slots(self, rows: Any) -> np.ndarray:
        """Rows of the files from those of the pictures."""
        rows = np.asarray(rows, dtype=np.int64)
        return rows if self.slots is None else self.slots[rows]

    def image(self, row: int) -> CollectionImage:
        """One picture."""
        return images_of(self.rows.slice(int(self._slots(row)), 1))[0]

    def embeds(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of some pictures: (len(rows), D) float32."""
        return self.row_embeds[self._slots(rows)]

    def all_embeds(self) -> Iterator[np.ndarray]:
        """Embeddings of all pictures, piece by piece: (I, D) float32 each."""
        piece = min(max(PIECE_BYTES // (4 * self.manifest.dimension), 1), PIECE)
        for start in range(0, len(self), piece):
            part = slice(start, start + piece)
            yield self.row_embeds[part if self.slots is None else self.slots[part]]

    @cached_property
    def texts(self) -> tuple[list[str], list[list[int]], np.ndarray]:
        """The distinct captions, the rows of each one's pictures, and their embeddings (M, D)."""
        places: dict[str, int] = {}
        rows: list[list[int]] = []
        embeds = []
        number, row = 0, 0
        for alive, texts in zip(self.alive(), self.rows.column("texts").to_pylist(), strict=True):
            for text in texts if alive else ():
                place = places.setdefault(text, len(places))
                if place == len(rows):
                    rows.append([])
                    embeds.append(number)
                rows[place].append(row)
                number += 1
            number += 0 if alive else len(texts)
            row += int(alive)
        return list(places), rows, self.text_embeds[embeds]

    def cached(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What is kept of some pictures, packed: (len(rows), …) each, in the order of `rows`.

        Raises:
            IndexFileError: A checksum differs.
        """
        records = self.records(self.rows.column("state").take(self._slots(rows)).to_numpy())
        return {name: torch.from_numpy(records[name].copy()) for name, *_ in self.manifest.layout[:-1]}

    def records(self, places: np.ndarray) -> np.ndarray:
        """What is kept for the ranker at some places, as records, checked."""
        state = self.manifest
        dtype = record_dtype(state.layout)
        out = read_records(dtype, state.per_file, lambda number: self._data[state.states[number]], places)
        for place in places[are_damaged(out)][:1]:
            path = self.root / state.states[place // state.per_file]
            raise IndexFileError(f"{path} was changed after it was written (record {place}); index anew")
        return out


__all__ = [
    "ImageIndex",
    "Part",
    "StatesWriter",
    "images_of",
    "part_path",
    "read_part",
    "rows_of",
    "write_part",
]

"""Shards of an index on disk: written whole or not at all, read memory-mapped.

A shard has `NAME.rows` (Arrow: id, path, content hash, captions … of each picture), `NAME.embeds` (safetensors: the
L2-normalised embeddings of pictures and captions, float32), `NAME.cache` (safetensors: what is kept for the ranker)
and `NAME.json`, which is written last: a shard without it was interrupted and does not count.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processing.files.writing import atomic_path, save_safetensors, write_text
from .cache import checksum_of_row
from .images import CollectionImage
from .manifest import SHARDS, FileRecord, IndexFileError, Manifest, ShardRecord

_OF_IMAGE = ["id", "path", "offset", "size", "mtime_ns", "texts", "location", "source"]
#: How often an index is opened again that a writer replaces meanwhile.
_ATTEMPTS = 50
_TYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "I64": np.int64}


@dataclass
class ShardContent:
    """What goes into a shard: pictures with their content hashes, embeds (I, D), text_embeds (M, D) of their captions
    in order, cache: packed tensors (I, …) with a checksum each, unreadable: see `ShardRecord`."""

    images: list[CollectionImage]
    contents: list[str]
    embeds: Tensor
    text_embeds: Tensor
    cache: dict[str, Tensor]
    checksums: list[int]
    unreadable: list[dict]


def write_shard(root: Path, name: str, content: ShardContent) -> ShardRecord:
    """Write a shard so that it is either whole, with its record, or does not count.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    folder = root / SHARDS
    places = {kind: folder / f"{name}.{kind}" for kind in ("rows", "embeds", "cache")}
    with atomic_path(places["rows"]) as partial:
        _write_rows(partial, content.images, content.contents, content.checksums)
    save_safetensors({"image": content.embeds, "text": content.text_embeds}, places["embeds"])
    files = {kind: FileRecord.of(places[kind]) for kind in ("rows", "embeds")}
    if content.cache:
        save_safetensors(content.cache, places["cache"])
        files["cache"] = FileRecord.of(places["cache"], hashed=False)  # a checksum for each picture lies with its row
    record = ShardRecord(name, len(content.images), len(content.text_embeds), files, content.unreadable)
    write_text(folder / f"{name}.json", json.dumps(asdict(record), ensure_ascii=False) + "\n")
    return record


def move_shard(root: Path, name: str, shard: "Shard", images: list[CollectionImage]) -> ShardRecord:
    """Write a shard again under another name with other places of its pictures; what was encoded is linked, or copied
    where the disk has no links.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    record = shard.record
    rows = root / SHARDS / f"{name}.rows"
    checksums = shard.rows.column("checksum").to_pylist()
    with atomic_path(rows) as partial:
        _write_rows(partial, images, shard.rows.column("content").to_pylist(), checksums)
    files = {**record.files, "rows": FileRecord.of(rows)}
    for kind in record.files.keys() - {"rows"}:
        old, new = record.path(root, kind), root / SHARDS / f"{name}.{kind}"
        try:
            os.link(old, new)
        except OSError:
            with atomic_path(new) as partial:
                shutil.copyfile(old, partial)
    moved = replace(record, name=name, files=files)
    write_text(root / SHARDS / f"{name}.json", json.dumps(asdict(moved), ensure_ascii=False) + "\n")
    return moved


def _write_rows(path: Path, images: list[CollectionImage], contents: list[str], checksums: list[int]) -> None:
    import pyarrow as pa

    columns = {
        "id": pa.array([image.id for image in images], pa.string()),
        "path": pa.array([image.path for image in images], pa.string()),
        "offset": pa.array([image.offset for image in images], pa.int64()),
        "size": pa.array([image.size for image in images], pa.int64()),
        "mtime_ns": pa.array([image.mtime_ns for image in images], pa.int64()),
        "content": pa.array(contents, pa.string()),
        "texts": pa.array([image.texts for image in images], pa.list_(pa.string())),
        "location": pa.array([image.location for image in images], pa.string()),
        "source": pa.array([image.source for image in images], pa.string()),
        "checksum": pa.array(checksums or [None] * len(images), pa.int64()),
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def finished_shards(root: Path, first: int, but: set[str]) -> list[ShardRecord]:
    """Every whole shard from the number `first` on but those named, in the order of their names."""
    found = []
    for path in sorted((root / SHARDS).glob("????????.json")):
        if not path.stem.isdecimal() or int(path.stem) < first or path.stem in but:
            continue
        try:
            record = ShardRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
            if record.name != path.stem:
                continue
            for kind, file in record.files.items():
                file.check(record.path(root, kind))
        except (ValueError, TypeError, KeyError, AttributeError):  # torn by the system: its pictures are encoded anew
            continue
        found.append(record)
    return found


class Shard:
    """One shard, memory-mapped."""

    def __init__(self, root: Path, record: ShardRecord):
        self.root, self.record = root, record
        self._buffers: dict[str, Any] = {}

    def open(self) -> None:
        """Map all files now: what a writer removes later stays readable.

        Raises:
            IndexFileError: a file is missing, or of another size than it was written with.
        """
        for kind, file in self.record.files.items():
            file.check_size(self.record.path(self.root, kind), len(self._mapped(kind)))
        _ = self.rows, self.embeds, self.cache

    def verify(self) -> None:
        """Compare the checksums of what is mapped.

        Raises:
            IndexFileError: a file was changed after it was written.
        """
        for kind, file in self.record.files.items():
            file.check_content(self.record.path(self.root, kind), self._mapped(kind))

    def _mapped(self, kind: str):
        if kind not in self._buffers:
            self._buffers[kind] = mapped(self.record.path(self.root, kind))
        return self._buffers[kind]

    @cached_property
    def rows(self):
        """The Arrow table of its pictures."""
        import pyarrow as pa

        try:
            return pa.ipc.open_file(self._mapped("rows")).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise IndexFileError(f"{self.record.path(self.root, 'rows')} cannot be read: {error}") from error

    @cached_property
    def embeds(self) -> dict[str, np.ndarray]:
        """image (I, D), text (M, D) float32."""
        return _tensors(self.record.path(self.root, "embeds"), self._mapped("embeds"))

    @cached_property
    def cache(self) -> dict[str, np.ndarray]:
        """What is kept for the ranker, packed; empty where nothing is."""
        if "cache" not in self.record.files:
            return {}
        return _tensors(self.record.path(self.root, "cache"), self._mapped("cache"))

    def cached_rows(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The packed cache of some pictures, read from the disk and checked: (len(rows), …) each.

        Raises:
            IndexFileError: a checksum differs.
        """
        arrays = {name: array[rows] for name, array in sorted(self.cache.items())}
        expected = self.rows.column("checksum").take(rows).to_pylist()
        for place, (row, checksum) in enumerate(zip(rows, expected, strict=True)):
            if checksum_of_row([array[place] for array in arrays.values()]) != checksum:
                path = self.record.path(self.root, "cache")
                raise IndexFileError(f"{path} was changed after it was written (picture {row}); index anew")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def images(self) -> list[CollectionImage]:
        """Its pictures, in order."""
        out, sources = [], {}
        for row in self.rows.select(_OF_IMAGE).to_pylist():
            row["texts"] = tuple(row["texts"])
            row["source"] = sources.setdefault(row["source"], row["source"])  # one string, not one each
            if row["location"] == row["path"]:
                row["location"] = row["path"]
            out.append(CollectionImage(**row))
        return out

    def select(self, rows: Sequence[int], images: list[CollectionImage]) -> ShardContent:
        """The content of some of its rows, to write anew, for all of its pictures as they are to be remembered."""
        ends = np.cumsum([0, *(len(image.texts) for image in images)])
        texts = [place for row in rows for place in range(ends[row], ends[row + 1])]
        cached = self.cached_rows(list(rows)) if self.cache and len(rows) else {}
        return ShardContent(
            [images[row] for row in rows],
            self.rows.column("content").take(rows).to_pylist(),
            torch.from_numpy(self.embeds["image"][list(rows)]),
            torch.from_numpy(self.embeds["text"][texts].reshape(len(texts), self.embeds["text"].shape[1])),
            cached,
            self.rows.column("checksum").take(rows).to_pylist() if cached else [],
            [],
        )


def mapped(path: Path) -> Any:
    """The content of a file as an Arrow buffer, mapped and not read. No handle stays open: an index may have thousands
    of files.

    Raises:
        IndexFileError: there is none, or it cannot be read. PermissionError: not by this user.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except FileNotFoundError:
        raise IndexFileError(f"{path} is missing: index the pictures anew, or restore the file") from None
    except PermissionError as error:
        raise PermissionError(error.errno, f"{path} may not be read by this user: {os.strerror(error.errno)}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error


def _tensors(path: Path, data: Any) -> dict[str, np.ndarray]:
    """The tensors of a mapped safetensors file: views of it."""
    try:
        length = int.from_bytes(data[:8].to_pybytes(), "little")
        header = json.loads(data[8 : 8 + length].to_pybytes())
        header.pop("__metadata__", None)
        return {
            name: np.frombuffer(
                data,
                _TYPES[entry["dtype"]],
                count=int(np.prod(entry["shape"])),
                offset=8 + length + entry["data_offsets"][0],
            ).reshape(entry["shape"])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error


class ImageIndex:
    """An index on disk as it was at one moment, read only.

    Args:
        root: its folder. verify: compare every file's checksum on opening (a second for each few gigabytes); without
            it only sizes. What is kept for the ranker is checked picture by picture when it is read.

    Raises:
        IndexFileError: no index, a torn, edited or missing file, another format.
    """

    def __init__(self, root: str | Path, verify: bool = True):
        self.root = Path(root)
        for attempt in range(_ATTEMPTS):
            self.manifest = Manifest.load(self.root)
            try:
                self._open()
                break
            except IndexFileError as error:
                # a writer has replaced the index since the manifest was read
                if attempt == _ATTEMPTS - 1 or Manifest.load(self.root) == self.manifest:
                    raise self._with_remedy(error) from error
        if verify:
            try:
                self._verify()
            except IndexFileError as error:
                raise self._with_remedy(error) from error
        self.starts = np.cumsum([0, *(record.rows for record in self.manifest.shards)])

    def _open(self) -> None:
        """Map every file, quickly: from here on a writer may replace the index."""
        self.shards = [Shard(self.root, record) for record in self.manifest.shards]
        for shard in self.shards:
            shard.open()
        self.vectors = None  # of FAISS, mapped
        if self.vectors_path is not None:
            self.vectors = mapped(self.vectors_path)
            self._vectors_record.check_size(self.vectors_path, len(self.vectors))

    def _verify(self) -> None:
        for shard in self.shards:
            shard.verify()
        if self.vectors is not None:
            self._vectors_record.check_content(self.vectors_path, self.vectors)

    def _with_remedy(self, error: IndexFileError) -> IndexFileError:
        return IndexFileError(f"{error}: {self.manifest.remake_command(self.root)}")

    @property
    def vectors_path(self) -> Path | None:
        """The file of the vector index; None where the embeddings themselves are searched."""
        name = self.manifest.vectors.get("file")
        return None if name is None else self.root / name

    @property
    def _vectors_record(self) -> FileRecord:
        return FileRecord(**self.manifest.vectors["record"])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def table(self):
        """All pictures: an Arrow table over the mapped files."""
        import pyarrow as pa

        return pa.concat_tables([shard.rows for shard in self.shards]) if self.shards else None

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The row of every id."""
        return {id: row for row, id in enumerate(self.table.column("id").to_pylist())} if len(self) else {}

    def image(self, row: int) -> CollectionImage:
        """One picture."""
        values = {
            name: column[0].as_py()
            for name, column in zip(self.table.column_names, self.table.slice(row, 1).columns, strict=True)
        }
        values = {name: values[name] for name in ("id", "path", "offset", "size", "mtime_ns", "texts", "location")}
        return CollectionImage(**{**values, "texts": tuple(values["texts"])})

    def embeds(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of some pictures: (len(rows), D) float32."""
        out = np.empty((len(rows), self.manifest.dimension), np.float32)
        for shard, places, inside in self._by_shard(rows):
            out[places] = self.shards[shard].embeds["image"][inside]
        return out

    def all_embeds(self) -> Iterator[np.ndarray]:
        """Embeddings of all pictures, shard by shard: (I, D) float32 each."""
        return (shard.embeds["image"] for shard in self.shards)

    @cached_property
    def texts(self) -> tuple[list[str], list[list[int]], np.ndarray]:
        """The distinct captions, the rows of each one's pictures, and their embeddings (M, D)."""
        places: dict[str, int] = {}
        rows: list[list[int]] = []
        embeds = []
        if len(self):
            flat = np.concatenate([shard.embeds["text"] for shard in self.shards])
            number = 0
            for row, texts in enumerate(self.table.column("texts").to_pylist()):
                for text in texts:
                    place = places.setdefault(text, len(places))
                    if place == len(rows):
                        rows.append([])
                        embeds.append(number)
                    rows[place].append(row)
                    number += 1
            return list(places), rows, flat[embeds]
        return [], [], np.empty((0, self.manifest.dimension), np.float32)

    def cached(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What is kept of some pictures, packed: (len(rows), …) each, in the order of `rows`."""
        out: dict[str, Tensor] = {}
        for shard, places, inside in self._by_shard(rows):
            for name, tensor in self.shards[shard].cached_rows(inside.tolist()).items():
                if name not in out:
                    out[name] = tensor.new_empty((len(rows), *tensor.shape[1:]))
                out[name][torch.from_numpy(places)] = tensor
        return out

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard concerned: its number, places within `rows`, rows within the shard."""
        rows = np.asarray(rows, dtype=np.int64)
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for shard in np.unique(owners):
            places = np.flatnonzero(owners == shard)
            yield int(shard), places, rows[places] - self.starts[shard]

"""The general reader: a user's own image-text pairs, whatever format they are in."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ..files.images import ImageReadError, check_image, open_image
from .chinese_clip import Base64Images
from .pair_sets import Pairs, kept_together
from .places import located
from .records import PLAIN, RawPair, Reading, image_id_of
from .report import ErrorReport, Problem
from .tables import ImageColumn, require_datasets

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

CheckImages = Literal["header", "exists", "none"]
_CHUNK = 10_000


class PairDataset(Pairs):
    """A map-style set of pairs: `len(pairs)`, and `pairs[i]` is
    `{"image": PIL.Image (RGB), "text": str | list[str], "image_id": str}`, in sets of labelled pairs also
    `"label"`: 1 where picture and text match, 0 where not.

    Texts, paths and ids lie in one Arrow table, so a set of millions stays compact and data loader workers share
    it without copying. Pictures are read and decoded on access.

    Attributes:
        report: what was bad at loading and, from any process, at decoding.
        labelled: whether every pair has a label.
        exif_transpose: pictures are turned upright as their EXIF data say. Where a processor reads them, its own
            setting holds (`as_processor_reads`).
        unpaired: pictures without a text that belong to the gallery of a benchmark (Chinese-CLIP format), or None.
    """

    report: ErrorReport

    def __init__(
        self,
        table: pa.Table,
        report: ErrorReport,
        *,
        images: ImageColumn | Base64Images | None = None,
        background: str | tuple[int, int, int] | None = None,
    ) -> None:
        self.table = table
        self.report = report
        self.background = background
        self.exif_transpose = True
        self.labelled = table.num_rows > 0 and table.column("label").null_count < table.num_rows
        self.unpaired = None
        self._images: ImageColumn | Base64Images | Any = images  # None where every picture has a path

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair.

        Raises:
            ImageReadError: the picture cannot be decoded; names it and the line of the data file.
        """
        texts = self.texts(index)
        pair = {
            "image": self.image(index),
            "text": texts[0] if len(texts) == 1 else texts,
            "image_id": self._cell("image_id", index),
        }
        return {**pair, "label": self._cell("label", index)} if self.labelled else pair

    def image(
        self,
        index: int,
        exif_transpose: bool | None = None,
        background: str | tuple[int, int, int] | None = None,
    ) -> Image.Image:
        """The decoded picture of one pair, RGB; `exif_transpose` instead of the set's own, and `background` where the
        set has none.

        Raises:
            ImageReadError: it cannot be read or decoded; names file and line.
        """
        path = self._cell("image", index)
        name = self.location(index)
        try:
            if path is None:
                value: Any = self._images[self._cell("row", index)]
            else:
                value, name = path, f"{name}: {path}"
            upright = self.exif_transpose if exif_transpose is None else exif_transpose
            color = background if self.background is None else self.background
            return open_image(value, background=color, name=name, exif_transpose=upright)
        except ImageReadError:
            raise
        except OSError as error:
            raise ImageReadError(f"{name}: {error}") from error

    def record(self, index: int) -> dict[str, Any]:
        """One pair undecoded, as a row of the `datasets` library: `image` {path, bytes}, `image_id`, `text_id`,
        `label`."""
        path = self._cell("image", index)
        value = self._images[self._cell("row", index)] if path is None else path
        image = {"path": value, "bytes": None} if isinstance(value, str) else {"path": None, "bytes": value}
        return {"image": image, **{name: self._cell(name, index) for name in ("image_id", "text_id", "label")}}

    def identity(self, index: int) -> tuple:
        """As in `Pairs`."""
        record = self.record(index)
        image = record.pop("image")
        if image["path"] is None:
            return (*record.values(), hashlib.blake2b(image["bytes"]).hexdigest())
        stat = Path(image["path"]).stat()
        return (*record.values(), image["path"], stat.st_size, stat.st_mtime_ns)

    def texts(self, index: int) -> list[str]:
        """All texts of one pair, without opening the picture."""
        return self._cell("texts", index)

    def location(self, index: int) -> str:
        """File and line (or row) that a pair comes from."""
        line = self._cell("line", index)
        source = self._cell("source", index)
        return source if line is None else f"{source}:{line}"

    def labels(self) -> np.ndarray:
        """1 where picture and text of a pair match, 0 where not: (N,) int64.

        Raises:
            ValueError: the set has no labels.
        """
        if not self.labelled:
            raise ValueError("these pairs have no labels: read a set of labelled pairs, or name the column of labels")
        return self.table.column("label").to_numpy()

    def keys(self) -> list[str]:
        """The image id of every pair, as the files give it."""
        return self.table.column("image_id").to_pylist()

    def image_keys(self) -> list[str | int]:
        """As in `Pairs`: the file of a picture that has one, the row of one that is embedded."""
        columns = (self.table.column(name).to_pylist() for name in ("image", "row"))
        return [row if path is None else path for path, row in zip(*columns, strict=True)]

    def text_keys(self) -> list[str | None]:
        """The identity of every pair's text where the files give one, else None."""
        return self.table.column("text_id").to_pylist()

    def first_texts(self) -> list[str]:
        """The first text of every pair."""
        return [texts[0] for texts in self.table.column("texts").to_pylist()]

    def all_texts(self) -> list[str]:
        """Every text of every pair, in order: for building a vocabulary."""
        return [text for texts in self.table.column("texts").to_pylist() for text in texts]

    def select(self, indices: Sequence[int] | np.ndarray) -> PairDataset:
        """The pairs at `indices`, in that order."""
        table = self.table.take(np.asarray(indices, dtype=np.int64))
        part = PairDataset(table, self.report, images=self._images, background=self.background)
        part.exif_transpose = self.exif_transpose
        part.together = kept_together(indices, self.together)
        return part

    def drop_unreadable(self) -> PairDataset:
        """Decode every picture once and keep the pairs whose picture is whole; the others are reported.

        Raises:
            DataRefusedError: too many are broken.
        """
        kept = []
        for index in range(len(self)):
            try:
                self.image(index)
                kept.append(index)
            except ImageReadError as error:
                self.record_unreadable(index, error)
        return self if len(kept) == len(self) else self.select(kept)

    def record_unreadable(self, index: int, error: Exception) -> None:
        """Count a picture that could not be decoded, in whatever process this happened."""
        line = self._cell("line", index)
        reason = str(error).removeprefix(f"{self.location(index)}: ")
        self.report.record_access(self._cell("source", index), line, reason)

    def _cell(self, column: str, index: int) -> Any:
        count = self.table.num_rows
        if not -count <= index < count:
            raise IndexError(f"index {index} of a set of {count} pairs")
        return self.table.column(column)[index + count if index < 0 else index].as_py()


def collect(
    records: Iterable[tuple[Path, RawPair | Problem]],
    report: ErrorReport,
    check_images: CheckImages,
    *,
    apart: bool = False,
) -> pa.Table:
    """Check every record and keep the good ones: an Arrow table of image, texts, image_id, source, line, row, label,
    text_id and group.

    Args:
        records: the folder in which a picture's relative path begins, and the record.
        apart: the folders are several, and pictures without an id are known by their whole path.

    Raises:
        DataRefusedError: too many are bad.
    """
    require_datasets()
    import pyarrow as pa

    schema = pa.schema(
        [
            ("image", pa.string()),
            ("texts", pa.list_(pa.string())),
            ("image_id", pa.string()),
            ("source", pa.dictionary(pa.int32(), pa.string())),
            ("line", pa.int64()),
            ("row", pa.int64()),
            ("label", pa.int64()),
            ("text_id", pa.string()),
            ("group", pa.string()),
        ]
    )
    names = schema.names
    chunks: list[pa.RecordBatch] = []
    columns: dict[str, list] = {name: [] for name in names}

    def flush() -> None:
        arrays = [pa.array(columns[name], type=schema.field(name).type) for name in names]
        chunks.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
        for values in columns.values():
            values.clear()

    row = -1  # of a table's; notes and what cannot be read are no rows
    for root, item in records:
        row += not isinstance(item, Problem) or (item.lines > 0 and not item.incomplete)
        report.count(item.lines if isinstance(item, Problem) else 1)
        if isinstance(item, RawPair):
            item = located(item, root)
        if isinstance(item, RawPair):
            item = _check(item, root, check_images) or item
        if isinstance(item, Problem):
            report.add(item)
            if report.on_error == "refuse" and report.loading_errors >= 4 * report.examples:
                report.check()
            continue
        if item.empty_texts:
            reason = f"{item.empty_texts} empty captions beside good ones"
            report.add(Problem(item.source, item.line, reason))
        path = str(root / item.image) if isinstance(item.image, str) else None
        place = row if item.row is None else item.row
        values = (
            path,
            item.texts,
            image_id_of(item, root, apart),
            item.source,
            item.line,
            place,
            item.label,
            item.text_id,
            item.group,
        )
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
        if len(columns["line"]) >= _CHUNK:
            flush()
    flush()
    report.check()
    return pa.Table.from_batches(chunks, schema=schema).unify_dictionaries()


def _check(item: RawPair, root: Path, check_images: CheckImages) -> Problem | None:
    if check_images == "none" or item.image is None:
        return None
    if isinstance(item.image, str) and not os.path.isfile(root / item.image):
        return Problem(item.source, item.line, f"{root / item.image}: no such picture")
    if check_images == "header":
        target = item.image if isinstance(item.image, bytes) else root / item.image
        try:
            check_image(target)
        except ImageReadError as error:
            return Problem(item.source, item.line, str(error))
    return None


def finish(pairs: PairDataset, name: str, reading: Reading = PLAIN) -> PairDataset:
    """The set, with a warning of what was bad; groups of pairs, where it has them, are kept together.

    Raises:
        ValueError: there is nothing in it; groups of several sizes, or whose pairs do not follow one another.
    """
    if not len(pairs):
        raise ValueError(f"{name}: no pairs in it\n{pairs.report.summary()}")
    if reading.grouped:
        pairs.together = _size_of(pairs.table.column("group").to_pylist(), name)
    if not pairs.report.quiet and (message := pairs.report.tell()):
        logger.warning("%s: %s", name, message)
    return pairs


def _size_of(groups: list[str | None], name: str) -> int:
    """How many pairs each group has."""
    if None in groups:
        raise ValueError(f"{name}: there is no column of groups in this format")
    runs = [(group, len(list(run))) for group, run in itertools.groupby(groups)]
    size = runs[0][1]
    seen: set[str | None] = set()
    for group, count in runs:
        if count != size or group in seen:
            raise ValueError(
                f"{name}: the group {group!r} is not {size} pairs that follow one another, as {runs[0][0]!r} is: all "
                "groups have one size, and the pairs of one stand together"
            )
        seen.add(group)
    return size

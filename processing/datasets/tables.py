"""Parquet files and data sets of the `datasets` library: columns of images (or paths) and texts."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from .records import (
    PLAIN,
    Member,
    RawPair,
    Reading,
    content_id,
    guess_notes,
    image_reference,
    make_pair,
    resolve_columns,
)
from .report import Problem

if TYPE_CHECKING:
    import datasets

BATCH_ROWS = 256


def require_datasets() -> Any:
    """The `datasets` library, or an error that says how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "reading pairs from tables needs the `datasets` library: pip install 'modeling-r2d2[train]'"
        ) from error
    return datasets


def load_parquet(paths: Sequence[Path]) -> tuple[datasets.Dataset, list[int]]:
    """Parquet files as one memory-mapped data set, and the row number where each file ends.

    Raises:
        ValueError: a file is not Parquet; names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends, total = [], 0
    for path in paths:
        try:
            total += pq.ParquetFile(path).metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {_first_line(error)}") from error
        ends.append(total)
    library = require_datasets()
    try:
        return library.Dataset.from_parquet([str(path) for path in paths]), ends
    except Exception as error:  # the library wraps whatever Arrow finds into errors of its own, of no common kind
        if isinstance(error, MemoryError | KeyboardInterrupt):
            raise
        reason = _first_line(error.__cause__ or error)
        names = ", ".join(map(str, paths[:3]))
        raise ValueError(
            f"{names}: cannot be read as Parquet, or the files differ in their columns: {reason}"
        ) from error


def open_saved(folder: str | os.PathLike) -> Any:
    """What `save_to_disk` wrote into a folder.

    Raises:
        ValueError: the folder is torn; says what is missing or broken.
    """
    library = require_datasets()
    try:
        return library.load_from_disk(os.fspath(folder))
    except Exception as error:
        raise ValueError(f"{folder}: its saved data set cannot be opened: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def choose_split(dataset: Any, split: str | None, name: str) -> Any:
    """One split of a dictionary of splits; a plain data set is returned as it is.

    Raises:
        ValueError: the split does not exist, or there are several and none was named.
    """
    if not isinstance(dataset, dict):
        return dataset
    if split is None:
        if len(dataset) == 1:
            return next(iter(dataset.values()))
        if "train" in dataset:
            return dataset["train"]
        raise ValueError(f"{name} has the splits {list(dataset)}; name one with split=")
    if split not in dataset:
        raise ValueError(f"{name} has no split {split!r}; there are {list(dataset)}")
    return dataset[split]


class ImageColumn:
    """Undecoded pictures of a data set by row: the file's bytes, or a path."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        library = require_datasets()
        if isinstance(dataset.features[column], library.Image):
            dataset = dataset.cast_column(column, library.Image(decode=False))
        self.dataset = dataset.select_columns([column]).with_format(None)
        self.column = column

    def __getitem__(self, row: int) -> str | bytes | None:
        return cast("str | bytes | None", image_reference(self.dataset[row][self.column]))


def read_table(
    dataset: datasets.Dataset,
    reading: Reading = PLAIN,
    *,
    name: str = "data set",
    files: Sequence[Path] = (),
    file_ends: Sequence[int] = (),
) -> Iterator[RawPair | Problem]:
    """Records of a data set in order, with rows counted from 1 as lines (within each file, if files are given).

    Pictures come as bytes or paths, undecoded; the path that a table gives beside the bytes is their `member.name`.
    For pairs, one without an image_id gets a digest of its bytes; an index knows it by its row.
    """
    import pyarrow as pa

    library = require_datasets()
    resolved = resolve_columns(dataset.column_names, reading)
    yield from guess_notes(resolved, reading, name, dataset.column_names)
    feature = dataset.features[resolved["image"]] if dataset.features else None
    wanted = [
        column
        for column in dataset.column_names
        if column in resolved.values()
        or (reading.metadata and "binary" not in str(dataset.data.schema.field(column).type))  # no other pictures
    ]
    table = dataset.select_columns(wanted).with_format(None)
    if isinstance(feature, library.Image):
        table = table.cast_column(resolved["image"], library.Image(decode=False))
    row_number = 0
    try:
        for batch in table.iter(batch_size=BATCH_ROWS):
            for offset in range(len(batch[resolved["image"]])):
                row = {column: values[offset] for column, values in batch.items()}
                source, line = locate_row(row_number, name, files, file_ends)
                row_number += 1
                pair = make_pair(row, resolved, source, line, reading)
                if isinstance(pair, RawPair) and isinstance(pair.image, bytes):
                    cell = row[resolved["image"]]
                    path = cell.get("path") if isinstance(cell, dict) else None
                    member = Member(PurePath(path).name if path else "", None, len(pair.image))
                    known = pair.image_id or (content_id(pair.image) if reading.captions else None)
                    pair = replace(pair, image_id=known, member=member)
                yield pair
    except (pa.ArrowException, OSError) as error:
        source, line = locate_row(row_number, name, files, file_ends)
        yield Problem(source, line, f"the table cannot be read from here on: {_first_line(error)}", incomplete=True)


def locate_row(row: int, name: str, files: Sequence[Path], file_ends: Sequence[int]) -> tuple[str, int]:
    """The file and the row within it (from 1) of a row of the whole data set (from 0)."""
    if not files:
        return name, row + 1
    index = min(bisect_right(file_ends, row), len(files) - 1)
    return str(files[index]), row + 1 - (file_ends[index - 1] if index else 0)

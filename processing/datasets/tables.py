"""Parquet files and data sets of the `datasets` library: columns of images (or paths) and texts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .records import Columns, RawPair, content_id, make_pair, resolve_columns
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
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        ends.append(total)
    library = require_datasets()
    return library.Dataset.from_parquet([str(path) for path in paths]), ends


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
        return image_reference(self.dataset[row][self.column])


def image_reference(value: Any) -> str | bytes | None:
    """What an image cell holds: bytes, a path, or nothing; other values come back as they are."""
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        return value.get("bytes") or value.get("path") or None
    return value


def read_table(
    dataset: datasets.Dataset,
    columns: Columns = None,
    *,
    name: str = "data set",
    files: Sequence[Path] = (),
    file_ends: Sequence[int] = (),
) -> Iterator[RawPair | Problem]:
    """Records of a data set in order, with rows counted from 1 as lines (within each file, if files are given).

    Pictures come as bytes or paths, undecoded. One without an image_id gets a digest of its bytes, or its path.
    """
    library = require_datasets()
    resolved = resolve_columns(dataset.column_names, columns)
    feature = dataset.features[resolved["image"]] if dataset.features else None
    table = dataset.select_columns(list(resolved.values())).with_format(None)
    if isinstance(feature, library.Image):
        table = table.cast_column(resolved["image"], library.Image(decode=False))
    row_number = 0
    for batch in table.iter(batch_size=BATCH_ROWS):
        for offset in range(len(batch[resolved["text"]])):
            row = {column: values[offset] for column, values in batch.items()}
            image = row[resolved["image"]] = image_reference(row[resolved["image"]])
            source, line = locate_row(row_number, name, files, file_ends)
            row_number += 1
            pair = make_pair(row, resolved, source, line)
            if isinstance(pair, RawPair) and pair.image_id is None and isinstance(image, bytes):
                pair = replace(pair, image_id=content_id(image))
            yield pair


def locate_row(row: int, name: str, files: Sequence[Path], file_ends: Sequence[int]) -> tuple[str, int]:
    """The file and the row within it (from 1) of a row of the whole data set (from 0)."""
    if not files:
        return name, row + 1
    index = bisect_right(file_ends, row)
    return str(files[index]), row + 1 - (file_ends[index - 1] if index else 0)

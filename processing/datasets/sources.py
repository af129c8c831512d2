"""From what the user names (file, glob, list, folder) to files and a format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .classes import read_classes
from .delimited import read_delimited
from .folder import find_captions_file, read_folder
from .jsonl import read_jsonl
from .listing import data_files, has_images
from .records import RawPair, Reading
from .report import Problem
from .tables import is_saved_dataset
from .text_files import other_archive
from .webdataset import read_tar

FORMATS = ("jsonl", "csv", "tsv", "folder", "classes", "parquet", "webdataset", "dataset")
_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".tbz2": "webdataset",
    ".txz": "webdataset",
}
_OF_FOLDERS = ("folder", "classes", "dataset")
_PACKED_TARS = (".tar.gz", ".tar.bz2", ".tar.xz")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers", ".et")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Paths named by a path, a list of paths, a glob, or a range `shard-{000..127}.tar`, in order.

    Raises:
        FileNotFoundError: a local path does not exist, or a pattern matches nothing.
    """
    if not isinstance(source, str | os.PathLike):
        return [path for item in source for path in expand(item)]
    text = os.fspath(source)
    match = _RANGE.search(text)
    if match:
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        parts = [f"{text[: match.start()]}{n:0{len(first)}d}{text[match.end() :]}" for n in numbers]
        return [path for part in parts for path in expand(part)]
    if "://" in text:
        return [text]
    if text.startswith("~") and not os.path.exists(text):
        text = os.path.expanduser(text)
    if os.path.exists(text):
        if not os.path.isfile(text) and not os.path.isdir(text):
            raise ValueError(f"{text} is neither a file nor a folder (a pipe or a device?)")
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        hub = ". A data set of the Hub is loaded first: load_pairs(datasets.load_dataset(...))"
        like_hub = re.fullmatch(r"[\w-]+/[\w.-]+", text) and not Path(text).suffix
        raise FileNotFoundError(f"{text} does not exist{hub if like_hub else ''}")
    return found


def files_of(paths: Sequence[str], format: str) -> list[str]:
    """The paths to read by a format that the user named: a folder stands for its files of that format.

    Raises:
        ValueError: a folder has none; a file where the format is of folders.
    """
    found: list[str] = []
    for path in paths:
        folder = Path(path)
        if "://" in path or folder.is_dir() == (format in _OF_FOLDERS):
            found.append(path)
        elif format in _OF_FOLDERS:
            raise ValueError(f"{path} is a file, and the format {format} is of folders")
        else:
            inner = [
                str(file) for file in data_files(folder, "*") if _is_data(file) and _detect_one(str(file)) == format
            ]
            if not inner:
                raise ValueError(f"{path} is a folder without files of the format {format}")
            found += inner
    return found


def detect_format(paths: Sequence[str]) -> str:
    """The format by suffix, or by what a folder holds.

    Raises:
        ValueError: none fits, or the files differ.
    """
    kinds = {_detect_one(path) for path in paths}
    if len(kinds) != 1:
        raise ValueError(f"files of several formats at once: {sorted(kinds)}; read them one by one")
    return kinds.pop()


def _detect_one(path: str) -> str:
    folder = Path(path)
    if "://" not in path and folder.is_dir():
        return "dataset" if is_saved_dataset(folder) else "folder"
    name = path.lower()
    if name.endswith(_PACKED_TARS):
        return "webdataset"
    kind = _BY_SUFFIX.get(Path(name).suffix)
    if kind is None:
        if name.endswith(_SPREADSHEETS):
            raise ValueError(f"{path} is a spreadsheet: save it as CSV (UTF-8) and name that")
        if "://" not in path and (what := other_archive(_head(folder))):
            raise ValueError(f"{path} is {what}: unpack it and name the folder, or write tar shards")
        if "://" not in path and folder.name.lower() == "captions.txt":
            raise ValueError(f"{path} holds the captions of a folder: name the folder, {folder.parent}")
        raise ValueError(f"{path}: unknown format; name one with format=, --format ({', '.join(FORMATS)})")
    return kind


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def reader_of(format: str) -> Callable[[str, Reading], Iterator[RawPair | Problem]]:
    """What reads one path of a format that is no table.

    Raises:
        ValueError: a table.
    """
    readers = {
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "tsv": _read_tsv,
        "folder": _read_folder,
        "classes": _read_classes,
        "webdataset": read_tar,
    }
    if format not in readers:
        raise ValueError(f"{format} cannot be streamed here; load it without streaming (it is memory-mapped)")
    return readers[format]


def _read_jsonl(path: str, reading: Reading) -> Iterator[RawPair | Problem]:
    return read_jsonl(Path(path), reading)


def _read_csv(path: str, reading: Reading) -> Iterator[RawPair | Problem]:
    return read_delimited(Path(path), reading)


def _read_tsv(path: str, reading: Reading) -> Iterator[RawPair | Problem]:
    return read_delimited(Path(path), reading, delimiter="\t")


def _read_folder(path: str, reading: Reading) -> Iterator[RawPair | Problem]:
    return read_folder(Path(path), reading)


def _read_classes(path: str, reading: Reading) -> Iterator[RawPair | Problem]:
    return read_classes(Path(path), reading)


def class_split(folder: Path, split: str) -> str:
    """The sub-folder of a split of classes.

    Raises:
        ValueError: there is none.
    """
    if not (folder / split).is_dir():
        raise ValueError(f"{folder} has no split {split!r}: no folder of that name")
    return str(folder / split)


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in _BY_SUFFIX or path.name.lower().endswith(_PACKED_TARS)


def split_of_folder(folder: Path, split: str | None) -> list[str]:
    """The part of a plain folder that holds `split`: a sub-folder, or files named after the split.

    A folder without captions and pictures of its own, but with data files, stands for those files.

    Raises:
        ValueError: there is no such split, or the folder holds nothing known.
    """
    if split is not None:
        if (folder / split).is_dir():
            return [str(folder / split)]
        named = sorted(
            path for path in data_files(folder, "*") if _is_data(path) and path.name.split(".")[0] == split
        ) or sorted(path for path in data_files(folder, f"{glob.escape(split)}-*") if _is_data(path))
        if not named:
            raise ValueError(f"{folder} has no split {split!r}: neither a folder nor data files of that name")
        return [str(path) for path in named]
    if find_captions_file(folder) is None:
        for suffixes in ((".parquet",), (".tar", ".tgz", ".tbz2", ".txz", *_PACKED_TARS)):
            files = [path for path in data_files(folder, "*") if path.name.lower().endswith(suffixes)]
            if files:
                return [str(path) for path in files]
        if not has_images(folder):
            raise ValueError(
                f"{folder} holds no captions file (metadata or captions .jsonl/.csv/.tsv, captions.txt), "
                "no .parquet or .tar files and no pictures"
            )
    return [str(folder)]

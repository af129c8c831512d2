"""From what the user names (file, glob, list, folder) to files and a format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .folder import find_captions_file, list_images
from .tables import is_saved_dataset

FORMATS = ("jsonl", "csv", "tsv", "folder", "parquet", "webdataset", "dataset")
_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tgz": "webdataset",
}
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
    if "://" in text or os.path.exists(text):
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        hub = ". A data set of the Hub is loaded first: load_pairs(datasets.load_dataset(...))"
        like_hub = re.fullmatch(r"[\w-]+/[\w.-]+", text) and not Path(text).suffix
        raise FileNotFoundError(f"{text} does not exist{hub if like_hub else ''}")
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
    if name.endswith(".tar.gz"):
        return "webdataset"
    kind = _BY_SUFFIX.get(Path(name).suffix)
    if kind is None:
        raise ValueError(f"{path}: unknown format; name one with format=, --format ({', '.join(FORMATS)})")
    return kind


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
            path for path in folder.iterdir() if path.suffix in _BY_SUFFIX and path.name.split(".")[0] == split
        ) or sorted(path for path in folder.glob(f"{split}-*") if path.suffix in _BY_SUFFIX)
        if not named:
            raise ValueError(f"{folder} has no split {split!r}: neither a folder nor data files of that name")
        return [str(path) for path in named]
    if find_captions_file(folder) is None:
        for suffix in (".parquet", ".tar"):
            files = sorted(folder.glob(f"*{suffix}"))
            if files:
                return [str(path) for path in files]
        if not list_images(folder):
            raise ValueError(
                f"{folder} holds no captions file (metadata or captions .jsonl/.csv/.tsv, captions.txt), "
                "no .parquet or .tar files and no pictures"
            )
    return [str(folder)]

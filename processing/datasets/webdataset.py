"""WebDataset shards: tar files whose members of one base name are one sample.

    000017.jpg   the picture (.jpg, .jpeg, .png, .webp, ...)
    000017.txt   its caption; or 000017.json with the keys of our JSON lines (text, caption, image_id, ...)

Members of one sample lie next to one another, as the format demands.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from .images import IMAGE_SUFFIXES
from .records import LABEL, Columns, RawPair, make_pair, resolve_columns
from .report import Problem

#: Makes a record without its picture from a sample's .json, for sets with columns of their own.
Describe = Callable[[object, str, int], RawPair | Problem]


def read_tar(path: str, columns: Columns = None, describe: Describe | None = None) -> Iterator[RawPair | Problem]:
    """Samples of one shard in order, read as a stream, pictures as undecoded bytes.

    `path` may be an address that fsspec opens (`https://`, `hf://`, ...). A sample is placed as
    `shard.tar/key` and numbered from 1. A shard that ends early or is no tar file gives a `Problem` after the
    samples that could be read.

    Args:
        describe: takes a sample's .json in place of our own reading of it.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    number = 0
    try:
        with _open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                if name.name.startswith("."):
                    continue
                stem, _, suffix = name.name.partition(".")
                member_key = (name.parent / stem).as_posix()
                if member_key != key:
                    if key is not None:
                        number += 1
                        yield _make_sample(path, number, key, members, columns, describe)
                    key, members = member_key, {}
                extracted = archive.extractfile(member)
                members[suffix.lower()] = extracted.read() if extracted is not None else b""
            # a whole archive ends with two empty blocks, of which tarfile has read one
            complete = bool(archive.fileobj.read(1))
        if key is not None:
            number += 1
            yield _make_sample(path, number, key, members, columns, describe)
        if not complete:
            yield Problem(path, number + 1, "the shard ends early: samples may be missing", incomplete=True)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        yield Problem(path, number + 1, f"the shard cannot be read from here on: {error}", incomplete=True)


def _open_binary(path: str):
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _make_sample(
    path: str,
    number: int,
    key: str,
    members: dict[str, bytes],
    columns: Columns,
    describe: Describe | None,
) -> RawPair | Problem:
    source = f"{path}/{key}"
    image = next((data for suffix, data in members.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    if image is None:
        return Problem(source, number, f"no picture among its members {sorted(members)}")
    row: dict = {}
    try:
        if describe is not None:
            if "json" not in members:
                return Problem(source, number, f"no .json among its members {sorted(members)}")
            pair = describe(json.loads(members["json"].decode("utf-8-sig")), source, number)
            return pair if isinstance(pair, Problem) else replace(pair, image=image)
        if "json" in members:
            row = json.loads(members["json"].decode("utf-8-sig"))
            if not isinstance(row, dict):
                return Problem(source, number, f"its .json is a {type(row).__name__}, not an object")
        if "txt" in members:  # the caption; of the .json the columns that are no text
            named = columns if isinstance(columns, Mapping) else {}
            kept = {"image_id", *(named[name] for name in ("image_id", LABEL) if name in named)}
            row = {name: value for name, value in row.items() if name in kept}
            row["text"] = members["txt"].decode("utf-8-sig")
    except (ValueError, RecursionError) as error:
        return Problem(source, number, f"its text cannot be read: {error}")
    row = {**{name: value for name, value in row.items() if name != "image"}, "image": image}
    try:
        wanted = {name: value for name, value in dict(columns or {}).items() if value in row or name == LABEL}
        resolved = resolve_columns(tuple(row), {**wanted, "image": "image"})
    except ValueError as error:
        return Problem(source, number, str(error))
    return make_pair(row, resolved, source, number)

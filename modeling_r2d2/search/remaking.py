"""How a source was named, so that the command that makes an index again can be told."""

import os
import shlex
from collections.abc import Mapping, Sequence
from itertools import takewhile
from os import PathLike
from pathlib import Path
from typing import Any

from ..processing.datasets.named import named_set
from ..processing.datasets.records import is_unicode
from ..processing.datasets.sources import expand


def source_words(source: Any, reading: Mapping[str, Any]) -> str:
    """A source as words of a command line, its paths in full: the same words for the same source, from anywhere.

    Args:
        source: of `list_images`.
        reading: of `list_images`.

    Returns:
        the words, quoted for a shell; empty for a data set in memory.

    Raises:
        ValueError: a name that is not valid UTF-8.
    """
    if isinstance(source, str | PathLike):
        source = [source]
    if hasattr(source, "features") or hasattr(source, "keys"):
        return ""
    words = [_full(path) for path in source]
    for name, value in sorted(reading.items()):
        if isinstance(value, Mapping):  # of columns
            for column, given in sorted(value.items()):
                words += [f"--{column}-column", str(given)]
        elif isinstance(value, str | PathLike):
            words += [f"--{name.replace('_', '-')}", _full(value) if name == "image_root" else str(value)]
    for word in words:
        refuse_no_unicode(word)
    return shlex.join(words)


def refuse_no_unicode(path: str | PathLike) -> None:
    """Raise unless a path can be written down.

    Raises:
        ValueError: its name is not valid UTF-8.
    """
    if not is_unicode(os.fspath(path)):
        raise ValueError(f"{ascii(os.fspath(path))}: the name is not valid UTF-8, so no index can note it: rename it")


def remake_command(root: Path, sources: Sequence[str], model: str | None, cache: Mapping[str, str]) -> str:
    """The command that makes the index of a folder anew, in its place.

    Args:
        sources: `source_words` of what it was made from.
        cache: what it keeps for the ranker.
    """
    kept = [] if cache["keep"] == "none" else ["--keep", cache["keep"], "--precision", cache["precision"]]
    options = shlex.join(["--model", model or "MODEL", "--output", str(root), *kept])
    commands = [f"r2d2 index {words or 'PICTURES'} {options}" for words in sources or [""]]
    return " && ".join([f"{commands[0]} --rebuild", *commands[1:]])


def covers(words: str, earlier: str) -> bool:
    """Whether a source names all files and folders that an earlier one named and that are still there, such as a range
    that has grown, or two folders of which one has been moved."""
    if words == earlier:
        return True
    there = {place for place in places_of(earlier) if "://" in place or os.path.exists(place)}
    return bool(there) and there <= places_of(words)


def places_of(words: str) -> set[str]:
    """Files and folders that the words of a source name."""
    places: set[str] = set()
    for word in takewhile(lambda word: not word.startswith("--"), shlex.split(words)):
        try:
            places.update(expand(word))
        except FileNotFoundError:
            places.add(word)
    return places


def folder_of(rows: Path) -> str:
    """The folder, as a word, that the pictures of a shard of an earlier release came from; empty if it was none."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(rows)) as file:
            table = pa.ipc.open_file(file).read_all().slice(0, 1)
    except (OSError, pa.ArrowInvalid):
        return ""
    (id,), (path,) = (table.column(name).to_pylist() for name in ("id", "path"))
    return shlex.quote(path.removesuffix(id)) if path and path.endswith(f"{os.sep}{id}") else ""


def in_full(location: str | None) -> str | None:
    """Where something is, the same from whatever folder, and by whatever way, it was looked at: a path, maybe with a
    line or a member behind it. What is none stays as it is."""
    if not location or "://" in location:
        return location
    start = Path(location).parts[0]
    if not os.path.exists(start) and not os.path.exists(location.rpartition(":")[0]):
        return location
    folder, name = os.path.split(location)
    return os.path.join(os.path.realpath(folder), name)


def is_there(location: str | None) -> bool:
    """Whether the file that a location in full names, maybe with a line or a member behind it, is still there."""
    if not location or "://" in location or not os.path.isabs(location):
        return True
    for place in (location, location.rpartition(":")[0]):
        while place and not os.path.lexists(place):
            place = os.path.dirname(place)
        if place == location or os.path.isfile(place):
            return True
    return False


def _full(path: str | PathLike) -> str:
    text = os.fspath(path)
    return text if "://" in text or named_set(text) else os.path.realpath(text)


__all__ = [
    "covers",
    "folder_of",
    "in_full",
    "is_there",
    "places_of",
    "refuse_no_unicode",
    "remake_command",
    "source_words",
]

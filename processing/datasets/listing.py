"""Which files lie below a folder: one walk, and one rule of what is nobody's picture, for all readers.

Systems and programs leave files beside a person's own: macOS `._cat.jpg` and `__MACOSX`, Windows `Thumbs.db` and
`$RECYCLE.BIN`, Synology `@eaDir`, Jupyter `.ipynb_checkpoints`. They bear a picture's suffix and are no pictures of
the collection, or are copies of such; so they are passed over in folders, archives and folders of classes alike.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from ..files.images import IMAGE_SUFFIXES
from .records import is_unicode
from .report import Note, Problem

_JUNK = frozenset(
    {
        "__macosx",
        "@eadir",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)
IGNORED = "ignored"


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    return name.startswith(".") or name.casefold() in _JUNK


def in_junk(path: PurePath | str) -> bool:
    """Whether any part of a relative path is junk: for members of archives."""
    return any(is_junk(part) for part in PurePath(path).parts if part not in (".", "..", "/"))


def kind_of(name: str) -> str:
    """The suffix in lower case, for counting what is ignored."""
    return PurePath(name).suffix.lower() or "without suffix"


class Walk:
    """Files below a folder in the order of their paths, junk left out, links followed, every folder once.

    Iterating gives the paths, and a `Problem` for a name that is no Unicode and for a folder that cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Path | Problem]:
        yield from self._visit(self.folder, set())

    def _visit(self, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path | Problem]:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Problem(str(folder), None, f"the folder cannot be opened: {error.strerror}", incomplete=True)
            return
        for entry in entries:
            if is_junk(entry.name):
                continue
            if not is_unicode(entry.name):
                yield Problem(ascii(entry.path), None, "the file's name is not valid UTF-8: rename it")
            elif _is_folder(entry):
                yield from self._visit(Path(entry.path), seen)
            else:
                yield Path(entry.path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, which is named when it is opened
        return False


def is_image(path: PurePath | str) -> bool:
    """Whether the suffix is a picture's."""
    return PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def data_files(folder: Path, pattern: str) -> list[Path]:
    """Files directly in a folder whose names fit a pattern, in whatever case, sorted; junk left out."""
    fitting = re.compile(fnmatch.translate(pattern), re.IGNORECASE)
    return sorted(
        path for path in folder.iterdir() if fitting.match(path.name) and not is_junk(path.name) and path.is_file()
    )


def has_images(folder: Path) -> bool:
    """Whether there is a picture below `folder`."""
    return any(isinstance(path, Path) and is_image(path) for path in Walk(folder))


def ignored_note(source: str, suffixes: Counter[str]) -> Iterator[Note]:
    """What was passed over, if anything was."""
    if suffixes:
        yield Note(source, None, IGNORED, counts=tuple(suffixes.items()))

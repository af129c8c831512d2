"""A folder of classes: the pictures of a class lie in a folder of its own, whose name is the class's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .folder import find_captions_file
from .listing import Walk, has_images, ignored_note, is_image, is_junk, kind_of
from .records import PLAIN, RawPair, Reading
from .report import Note, Problem
from .text_files import ADVICE, read_lines


def classes_in(folder: Path) -> list[str]:
    """Names of the sub-folders that hold pictures, at whatever depth, in order."""
    return [sub.name for sub in sorted(folder.iterdir()) if sub.is_dir() and not is_junk(sub.name) and has_images(sub)]


def is_class_folder(folder: Path) -> bool:
    """Whether a folder is one of classes: all its pictures lie in sub-folders, at least two of them, and no file
    holds captions, whether one for all or one beside a picture."""
    if not folder.is_dir() or find_captions_file(folder) is not None:
        return False
    classes: set[str] = set()
    for path in Walk(folder):
        if isinstance(path, Path) and is_image(path):
            parts = path.relative_to(folder).parts
            if len(parts) == 1 or path.with_suffix(".txt").is_file():
                return False
            classes.add(parts[0])
    return len(classes) > 1


def class_format(data: str | os.PathLike, split: str | None, format: str | None) -> str | None:
    """The format to read a data set of classes with: `format`, or "classes" where it is a folder of such."""
    folder = Path(data) if split is None else Path(data) / split
    return "classes" if format is None and is_class_folder(folder) else format


def read_class_names(path: Path, encoding: str | None = None) -> dict[str, list[str]]:
    """Names of classes by their folder, from lines `folder<TAB>name` or `folder<TAB>name，another name`.

    Raises:
        ValueError: a malformed line, a folder that is named twice; names file and line.
    """
    found: dict[str, list[str]] = {}
    for item in read_lines(path, encoding):
        if isinstance(item, Note):
            continue
        if isinstance(item, Problem):
            raise ValueError(f"{item}; {ADVICE}")
        number, line = item
        if not line.strip("\ufeff \t"):
            continue
        folder, tab, names = line.removeprefix("\ufeff").partition("\t")
        parts = [name.strip() for name in names.replace("，", ",").split(",") if name.strip()]
        if not tab or not parts:
            raise ValueError(f"{path}:{number}: not a folder, a tab and its Chinese name: {line!r}")
        if folder in found:
            raise ValueError(f"{path}:{number}: the folder {folder} is named twice")
        found[folder] = parts
    return found


def read_classes(folder: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Pictures below the folder, each with the name of its class as its text and its path as its id."""
    ignored: Counter[str] = Counter()
    for path in Walk(folder):
        if isinstance(path, Problem):
            yield path
        elif not is_image(path):
            ignored[kind_of(path.name)] += 1
        elif len(parts := path.relative_to(folder).parts) == 1:
            yield Problem(str(path), None, "a picture of no class: it lies beside the folders of the classes")
        else:
            yield RawPair(str(path), None, "/".join(parts), (parts[0].strip(),))
    yield from ignored_note(str(folder), ignored)

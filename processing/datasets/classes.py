"""A folder of classes: the pictures of a class lie in a folder of its own, whose name is the class's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .folder import find_captions_file
from .listing import Walk, ignored_note, is_image, kind_of
from .records import PLAIN, RawPair, Reading
from .report import Problem


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

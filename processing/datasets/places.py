"""From the picture's path as a file gives it to a file of this system: paths of Windows, `file://`, addresses."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from .records import RawPair
from .report import Problem

_DRIVE = re.compile(r"^(?:[A-Za-z]:[\\/]|\\\\)")
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_ROOT_ADVICE = "name the folder of the pictures with image_root (--image-root)"


def locate(root: Path, name: str) -> str:
    """The path, relative to `root` or absolute, of a picture that a file names.

    A path with backslashes is one of Windows, unless a file here is really called so. Of an absolute one, the longest
    ending that is a file below `root` is taken: `C:\\data\\photos\\cats\\1.jpg` is `cats/1.jpg` below `photos`.

    Raises:
        ValueError: an address of the network; an absolute path of Windows that has no such ending.
    """
    if "\\" not in name and ":" not in name:
        return name
    if name.lower().startswith("file://"):
        path = unquote(name[len("file://") :].removeprefix("localhost"))
        name = path[1:] if _DRIVE.match(path[1:]) else path
    elif _ADDRESS.match(name):
        raise ValueError(f"{name:.200} is an address, not a file: fetch the pictures first (img2dataset)")
    if os.name == "nt" or os.path.exists(root / name):
        return name
    if not _DRIVE.match(name):
        return name.replace("\\", "/")
    parts = re.split(r"[\\/]+", name)
    for first in range(1, len(parts)):
        ending = "/".join(parts[first:])
        if ending and os.path.isfile(root / ending):
            return ending
    raise ValueError(f"{name:.200} is a path of Windows, and no ending of it is a file in {root}: {_ROOT_ADVICE}")


def located(item: RawPair, root: Path) -> RawPair | Problem:
    """The record with its picture's path as this system has it."""
    if not isinstance(item.image, str) or ("\\" not in item.image and ":" not in item.image):
        return item
    try:
        return replace(item, image=locate(root, item.image))
    except ValueError as error:
        return Problem(item.source, item.line, str(error))

"""An image folder with its captions in one file, or in a text file beside each picture.

The captions file, first found: `metadata` or `captions` with the suffix .jsonl, .csv, .tsv, or `captions.txt`.
Paths are relative to the folder. In `captions.txt` a line is `name<TAB>caption`, several lines a picture; as in
Flickr30k, `name#0<TAB>caption` numbers the captions. Without such a file, `a/b.jpg` takes the lines of `a/b.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .delimited import read_delimited
from .images import IMAGE_SUFFIXES
from .jsonl import read_jsonl
from .records import Columns, RawPair, clean_texts, make_pair
from .report import Problem

CAPTION_FILES = tuple(
    f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in (".jsonl", ".csv", ".tsv")
) + ("captions.txt",)
_NUMBERED = re.compile(r"^(?P<name>.+)#\d+$")


def find_captions_file(folder: Path) -> Path | None:
    """The folder's captions file, or None."""
    return next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)


def list_images(folder: Path) -> list[Path]:
    """All pictures below `folder` by their suffix, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def read_captions_file(path: Path, columns: Columns = None) -> Iterator[RawPair | Problem]:
    """Records of a captions file of any of the four kinds."""
    if path.suffix == ".jsonl":
        yield from read_jsonl(path, columns)
    elif path.suffix == ".csv":
        yield from read_delimited(path, columns)
    elif path.suffix == ".tsv":
        yield from read_delimited(path, columns, delimiter="\t")
    else:
        yield from read_caption_lines(path)


def read_sidecars(folder: Path) -> Iterator[RawPair | Problem]:
    """Pictures with the captions of the text file beside each: one caption a line."""
    for image in list_images(folder):
        text = image.with_suffix(".txt")
        name = image.relative_to(folder).as_posix()
        if not text.is_file():
            yield Problem(str(image), None, f"no caption: there is no {text.name} beside it")
            continue
        try:
            lines = text.read_bytes().decode("utf-8-sig").splitlines()
            texts, _ = clean_texts([line for line in lines if line.strip()])
        except UnicodeDecodeError as error:
            yield Problem(str(text), None, f"not UTF-8: {error.reason}")
        except ValueError as error:
            yield Problem(str(text), 1, str(error))
        else:
            yield RawPair(str(text), 1, name, texts)


def read_caption_lines(path: Path) -> Iterator[RawPair | Problem]:
    """Records of lines `name<TAB>caption` or `name#0<TAB>caption`."""
    source = str(path)
    columns = {"image": "image", "text": "text"}
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                name, tab, caption = line.decode("utf-8").rstrip("\r\n").partition("\t")
            except UnicodeDecodeError as error:
                yield Problem(source, number, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            if not tab:
                yield Problem(source, number, "no tab between the picture's name and its caption")
                continue
            match = _NUMBERED.match(name)
            name = match["name"] if match else name
            yield make_pair({"image": name.strip(), "text": caption}, columns, source, number)

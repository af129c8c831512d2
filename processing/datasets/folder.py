"""An image folder with its captions in one file, or in a text file beside each picture.

The captions file, first found: `metadata` or `captions` with the suffix .jsonl, .csv, .tsv, or `captions.txt`.
Paths are relative to the folder. In `captions.txt` a line is `name<TAB>caption`, several lines a picture; as in
Flickr30k, `name#0<TAB>caption` numbers the captions. Without such a file, `a/b.jpg` takes the lines of `a/b.txt`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .delimited import read_delimited
from .jsonl import read_jsonl
from .listing import Walk, ignored_note, is_image, kind_of
from .records import PLAIN, RawPair, Reading, clean_texts, make_pair
from .report import Note, Problem
from .text_files import LARGEST_TEXT, decode_text, read_lines

CAPTION_FILES = tuple(
    f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in (".jsonl", ".csv", ".tsv")
) + ("captions.txt",)
_NUMBERED = re.compile(r"^(?P<name>.+)#\d+$")


def find_captions_file(folder: Path) -> Path | None:
    """The folder's captions file, in whatever case its name is written, or None."""
    try:
        names = {entry.name.lower(): entry.path for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        return None
    return next((Path(names[name]) for name in CAPTION_FILES if name in names), None)


def read_folder(folder: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Records of a folder, by its captions file or by the text beside each picture; what was ignored is noted.

    Where captions need not be there, the pictures that the captions file does not name come too, behind those.
    """
    captions = find_captions_file(folder)
    if captions is None:
        yield from read_sidecars(folder, reading)
        return
    named: set[str] = set()
    for item in read_captions_file(captions, reading):
        if isinstance(item, RawPair) and isinstance(item.image, str):
            named.add(os.path.normpath(item.image.replace("\\", "/")))
        yield item
    ignored: Counter[str] = Counter()
    unnamed = []
    root = reading.image_root or folder
    for path in Walk(root):
        if isinstance(path, Problem):
            yield path
        elif not is_image(path):
            if path != captions:
                ignored[kind_of(path.name)] += 1
        elif (name := path.relative_to(root).as_posix()) not in named:
            unnamed.append(name)
            if not reading.captions:
                yield RawPair(str(path), None, name, ())
    if unnamed and reading.captions:
        yield Note(
            str(folder),
            None,
            f"{len(unnamed)} pictures in {folder} have no (good) caption, the first is {unnamed[0]}",
        )
    yield from ignored_note(str(folder), ignored)


def read_captions_file(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Records of a captions file of any of the four kinds."""
    if path.suffix.lower() == ".jsonl":
        yield from read_jsonl(path, reading)
    elif path.suffix.lower() == ".csv":
        yield from read_delimited(path, reading)
    elif path.suffix.lower() == ".tsv":
        yield from read_delimited(path, reading, delimiter="\t")
    else:
        yield from read_caption_lines(path, reading)


def read_sidecars(folder: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Pictures with the captions of the text file beside each: one caption a line."""
    ignored: Counter[str] = Counter()
    texts: set[Path] = set()
    used: set[Path] = set()
    tops: set[str] = set()
    for image in Walk(folder):
        if isinstance(image, Problem):
            yield image
            continue
        if image.suffix.lower() == ".txt":
            texts.add(image)
        if not is_image(image):
            ignored[kind_of(image.name)] += 1
            continue
        name = image.relative_to(folder).as_posix()
        tops.add(name.partition("/")[0])
        beside = next((path for path in _sidecars(image) if path.is_file()), None)
        if beside is None:
            if reading.captions:
                yield Problem(str(image), None, f"no caption: there is no {image.stem}.txt beside it")
            else:
                yield RawPair(str(image), None, name, ())
            continue
        used.add(beside)
        try:
            if beside.stat().st_size > LARGEST_TEXT:
                raise ValueError(f"more than {LARGEST_TEXT:,} bytes are no captions of one picture")
            text, codec = decode_text(beside.read_bytes(), reading.encoding)
            captions, _ = clean_texts([line for line in text.split("\n") if line.strip()], reading.captions)
        except (ValueError, OSError) as error:
            yield Problem(str(beside), 1, str(error))
            if not reading.captions:
                yield RawPair(str(image), None, name, ())
        else:
            yield from codec.notes(str(beside))
            yield RawPair(str(beside), 1, name, captions)
    if reading.captions and not used and len(tops) > 1:
        reason = "where each sub-folder is a class, read it as such: format='classes' (--format classes)"
        yield Note(str(folder), None, reason)
    ignored[".txt"] -= len(used & texts)
    yield from ignored_note(str(folder), +ignored)


def _sidecars(image: Path) -> tuple[Path, ...]:
    return image.with_suffix(".txt"), image.with_suffix(".TXT"), image.with_name(f"{image.name}.txt")


def read_caption_lines(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Records of lines `name<TAB>caption` or `name#0<TAB>caption`."""
    source = str(path)
    columns = {"image": "image", "text": "text"}
    for item in read_lines(path, reading.encoding):
        if isinstance(item, Problem):
            yield item
            continue
        number, line = item
        if number == 1:
            line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab:
            yield Problem(source, number, "no tab between the picture's name and its caption")
            continue
        match = _NUMBERED.match(name)
        name = match["name"] if match else name
        yield make_pair({"image": name.strip(), "text": caption}, columns, source, number, reading)

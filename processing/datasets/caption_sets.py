"""Readers of the published sets whose pictures are files: ICM, IQM, ICR, IQR, Flickr30k-CNA, AIC-ICC, COCO-CN.

A picture is known by its base name, in whatever folder it lies; the formats are those of the published files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..files.images import IMAGE_SUFFIXES
from .folder import read_caption_lines
from .json_records import read_json_objects
from .records import PLAIN, RawPair, Reading, make_pair, read_label
from .report import Problem
from .text_files import decode_text

_MATCHING = {"image": "image_path", "text": "text"}


def read_retrieval_lines(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """ICR and IQR: `{"text": "…", "image_path": "…/1.jpg"}` per line."""
    yield from _base_names(_rows(path, reading, labelled=False))


def read_matching_lines(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """ICM and IQM: `{"text": "…", "image_path": "…/1.jpg", "label": 1}` per line, 1 for a match, 0 for none."""
    yield from _base_names(_rows(path, reading, labelled=True))


def read_flickr30k_cna(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Flickr30k-CNA: `1000092795.jpg#0<TAB>caption`; `#0` and `.jpg` may be missing."""
    yield from _base_names(_with_suffix(read_caption_lines(path, reading)))


def read_aic_icc(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """AIC-ICC: `[{"url": …, "image_id": "8f0….jpg", "caption": ["…", …]}, …]`, five captions a picture."""
    names = {"image": "image_id", "text": "caption", **_given(reading)}
    yield from _base_names(_with_suffix(_objects(path, names, reading)))


def read_coco_cn(path: Path, reading: Reading = PLAIN, members: frozenset[str] | None = None) -> Iterator:
    """COCO-CN: `COCO_val2014_000000000042#0<TAB>caption`, or JSON.

    The JSON may be objects with `image_id` (or `image`, `file_name`) and `caption` (or `captions`; their `tags` are
    not read), or COCO's own `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.

    Args:
        members: names without suffix of the pictures of a split (`coco-cn_test.txt`); others are passed over.
    """
    if path.suffix != ".json":
        records: Iterable[RawPair | Problem] = read_caption_lines(path, reading)
    elif (annotations := _coco_annotations(path, reading)) is not None:
        records = annotations
    else:
        records = _objects(path, _given(reading), reading)
    for item in _base_names(_with_suffix(records)):
        if isinstance(item, Problem) or members is None or Path(str(item.image)).stem in members:
            yield item


def read_members(path: Path) -> frozenset[str]:
    """Names without suffix from a list of pictures, one a line, as `coco-cn_test.txt`.

    Raises:
        ValueError: the list is empty.
    """
    lines = decode_text(path.read_bytes())[0].split()
    if not lines:
        raise ValueError(f"{path} is empty: it should list the pictures of a split, one a line")
    return frozenset(_stem(line) for line in lines)


def _rows(path: Path, reading: Reading, labelled: bool) -> Iterator[RawPair | Problem]:
    names = {**_MATCHING, **_given(reading)}
    for item in read_json_objects(path, reading.encoding):
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        if missing := [name for name in (names["image"], names["text"]) if name not in row]:
            yield Problem(str(path), line, f"no {' and no '.join(missing)}; there are {list(row)!r:.300}")
            continue
        pair = make_pair(row, names, str(path), line, reading)
        if labelled and isinstance(pair, RawPair):
            try:
                pair = replace(pair, label=read_label(row.get(names.get("label", "label"))))
            except ValueError as error:
                pair = Problem(str(path), line, str(error))
        yield pair


def _objects(path: Path, names: dict[str, str], reading: Reading) -> Iterator[RawPair | Problem]:
    """Objects with a picture's name and its caption or captions, of whichever usual keys."""
    aliases = {"image": ("file_name", "image", "image_path", "image_id"), "text": ("caption", "captions", "text")}
    for item in read_json_objects(path, reading.encoding):
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        found = {f: names.get(f) or next((a for a in some if a in row), some[0]) for f, some in aliases.items()}
        if missing := [name for name in found.values() if name not in row]:
            yield Problem(str(path), line, f"no {' and no '.join(missing)}; there are {list(row)!r:.300}")
        else:
            yield make_pair(row, found, str(path), line, reading)


def _coco_annotations(path: Path, reading: Reading) -> Iterator[RawPair | Problem] | None:
    """Records of COCO's own annotation file, or None where the file is of another kind."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return None
    try:
        whole = json.loads(decode_text(path.read_bytes(), reading.encoding)[0])
    except (ValueError, RecursionError):  # JSON lines, or broken: the line reader says where
        return None
    if not isinstance(whole, dict) or not {"images", "annotations"} <= set(whole):
        return None
    return _coco_records(path, whole)


def _coco_records(path: Path, whole: dict) -> Iterator[RawPair | Problem]:
    images, annotations = whole["images"], whole["annotations"]
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f"{path}: its images and annotations are no lists")
    names: dict[object, object] = {}
    for number, image in enumerate(images, start=1):
        if isinstance(image, dict) and isinstance(image.get("id"), str | int) and "file_name" in image:
            names[image["id"]] = image["file_name"]
        else:
            yield Problem(f"{path}[images]", number, "no object with id and file_name")
    source = f"{path}[annotations]"
    for number, row in enumerate(annotations, start=1):
        key = row.get("image_id") if isinstance(row, dict) else None
        name = names.get(key) if isinstance(key, str | int) else None
        if name is None:
            yield Problem(source, number, f"image_id {key!r:.60} is not among the file's images")
        else:
            pair = {"image": name, "text": row.get("caption")}
            yield make_pair(pair, {"image": "image", "text": "text"}, source, number)


def _with_suffix(records: Iterable[RawPair | Problem]) -> Iterator[RawPair | Problem]:
    for item in records:
        if isinstance(item, RawPair) and Path(str(item.image)).suffix.lower() not in IMAGE_SUFFIXES:
            item = replace(item, image=f"{item.image!s}.jpg")
        yield item


def _base_names(records: Iterable[RawPair | Problem]) -> Iterator[RawPair | Problem]:
    for item in records:
        if isinstance(item, RawPair):
            name = re.split(r"[/\\]", str(item.image))[-1]
            if not name:
                item = Problem(item.source, item.line, f"{item.image!r} names a folder, not a picture")
            else:
                item = replace(item, image=name, image_id=item.image_id or name)
        yield item


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _given(reading: Reading) -> dict[str, str]:
    columns = reading.columns
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError("columns is a list; for this format it is a mapping, as {'text': 'title'}")
    return dict(columns or {})

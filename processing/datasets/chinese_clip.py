"""The Chinese-CLIP format, in which MUGE and Flickr30k-CN are passed around:

    valid_imgs.tsv      1001<TAB>/9j/4AAQ…      (id, the picture's file in base64)
    valid_texts.jsonl   {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1001, 1002]}

Every text makes one record per picture of its `image_ids`. Pictures without a text make a record without texts: they
belong to the gallery of a retrieval benchmark.
"""

from __future__ import annotations

import base64
import binascii
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from ..files.images import ImageReadError, check_image
from .json_records import read_json_objects
from .records import RawPair, clean_texts, is_unicode
from .report import Problem

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Base64Images:
    """Pictures of a `_imgs.tsv`, read where they lie: `images[row]` is the file's bytes.

    Holds 16 bytes a picture; every process opens the file for itself.

    Attributes:
        rows: row of each id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, int] = {}
        self._begin, self._length = array("q"), array("q")
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self._begin)

    def __getitem__(self, row: int) -> bytes:
        """The picture's bytes.

        Raises:
            ImageReadError: not base64.
        """
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
        # pread: workers forked from one process share the file's position
        data = os.pread(self._handle, self._length[row], self._begin[row])
        try:
            return decode_image(data)
        except ValueError as error:
            raise ImageReadError(f"{self.path}: picture {row + 1}: {error}") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": None}

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)

    def index(self, check_images: str) -> Iterator[Problem]:
        """Scan the file once, noting where each picture lies; yields what is wrong with it.

        Args:
            check_images: "header" decodes each picture's header, anything else only looks for the two fields.
        """
        source, place = str(self.path), 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                begin, place = place, place + len(line)
                if not line.strip():
                    continue
                key, tab, data = line.rstrip(b"\r\n").partition(b"\t")
                reason = None if tab and data else "not two fields: the picture's id, a tab, the picture in base64"
                identity = key.decode("utf-8", "replace").strip().removeprefix("\ufeff")
                if reason is None and identity in self.rows:
                    reason = f"picture {identity} stands in the file twice"
                if reason is None and check_images == "header":
                    reason = _header_problem(data, identity)
                if reason is not None:
                    yield Problem(source, number, reason)
                    continue
                self.rows[identity] = len(self._begin)
                self._begin.append(begin + len(key) + 1)
                self._length.append(len(data))


def decode_image(data: bytes) -> bytes:
    """Bytes of a picture from base64 of either alphabet.

    Raises:
        ValueError: not base64.
    """
    try:
        return base64.b64decode(data.translate(_URL_SAFE), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def images_of(texts: Path) -> Path:
    """`valid_imgs.tsv` of `valid_texts.jsonl`.

    Raises:
        ValueError: the name does not end in `_texts.jsonl`.
        FileNotFoundError: there is no such file.
    """
    stem, marker, rest = texts.name.rpartition("_texts.jsonl")
    if not marker or rest:
        raise ValueError(f"{texts}: the Chinese-CLIP format has its texts in SPLIT_texts.jsonl; name that file")
    path = texts.with_name(f"{stem}_imgs.tsv")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the pictures of {texts.name} belong there")
    return path


def read_chinese_clip(
    texts: Path, images: Base64Images, check_images: str, encoding: str | None = None
) -> Iterator[RawPair | Problem]:
    """Records of one split, `row` being the picture's place in `images`, which is filled first."""
    yield from images.index(check_images)
    unpaired = dict(images.rows)
    source = str(texts)
    for item in read_json_objects(texts, encoding):
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        try:
            (text,), _ = clean_texts(row.get("text") if isinstance(row.get("text"), str) else None)
            ids = _image_ids(row)
        except ValueError as error:
            yield Problem(source, line, str(error))
            continue
        text_id = str(row.get("text_id", f"line {line}"))
        if not is_unicode(text_id) or not all(map(is_unicode, ids)):
            yield Problem(source, line, "text_id or image_ids are not valid Unicode")
            continue
        for image_id in ids:
            unpaired.pop(image_id, None)
            if image_id not in images.rows:
                yield Problem(source, line, f"picture {image_id} is not (whole) in {images.path.name}")
                continue
            place = images.rows[image_id]
            yield RawPair(source, line, None, (text,), image_id, text_id=text_id, row=place)
    for image_id, place in unpaired.items():
        yield RawPair(str(images.path), None, None, (), image_id, row=place)


def _image_ids(row: dict) -> list[str]:
    ids = row.get("image_ids")
    if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, str | int) for i in ids):
        raise ValueError(f"image_ids is {ids!r:.60}, not a list of ids")
    if not ids:
        raise ValueError("image_ids is empty (a test split whose answers are not published?)")
    return list(dict.fromkeys(map(str, ids)))


def _header_problem(data: bytes, identity: str) -> str | None:
    try:
        check_image(decode_image(data), name=f"picture {identity}")
    except (ImageReadError, ValueError) as error:
        return str(error)
    return None

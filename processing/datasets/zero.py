"""Zero (arXiv 2205.03860): an object per sample with `Url, Title, Content, Keywords, ImageKey, ImageUrl, ImageQuery`.

Pictures are published as addresses. `img2dataset` fetches them (see `img2dataset.py`); or they lie in a folder as
`ImageKey` with or without a suffix. A picture has several texts: the query that led to it, the page's title, the
text around it; whichever are there are its captions, equal ones once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .json_records import read_json_objects
from .records import PLAIN, RawPair, Reading, clean_texts
from .report import Problem

#: Fields that become captions, in this order; `Keywords` are the page's and often of other things.
TEXT_FIELDS = ("ImageQuery", "Title", "Content")


def read_zero(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Records of a Zero file, JSON lines or an array; the picture's name is its `ImageKey`.

    Args:
        reading: columns `{"text": "Title"}` or `{"text": "Title,ImageQuery"}` for other captions than `TEXT_FIELDS`.
    """
    fields = text_fields(reading)
    for item in read_json_objects(path, reading.encoding):
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        key = row.get("ImageKey")
        if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
            yield Problem(str(path), line, f"no ImageKey; there are {list(row)!r:.300}")
            continue
        texts = zero_texts(row, fields, str(path), line)
        if isinstance(texts, RawPair):
            texts = replace(texts, image=str(key), image_id=str(key))
        yield texts


def text_fields(reading: Reading) -> tuple[str, ...]:
    """Names of the fields that become captions."""
    given = reading.columns.get("text") if isinstance(reading.columns, Mapping) else None
    return TEXT_FIELDS if given is None else tuple(name.strip() for name in given.split(","))


def zero_texts(row: Mapping, fields: tuple[str, ...], source: str, line: int | None) -> RawPair | Problem:
    """The captions of one sample as a record that has no picture yet; a field may hold one text or several."""
    texts: list = []
    for name in fields:
        value = row.get(name)
        texts += value if isinstance(value, list) else [value]
    try:
        cleaned, _ = clean_texts(texts)  # an empty field is usual here, a sample without any caption is not
    except ValueError as error:
        return Problem(source, line, f"{error} ({', '.join(fields)})")
    return RawPair(source, line, None, tuple(dict.fromkeys(cleaned)))

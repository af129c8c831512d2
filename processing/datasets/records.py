"""The common shape of a record, and the rules that make one from what a file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .report import Problem

# first the name to write, then the ones also understood
ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "file_name", "path", "img"),
    "text": ("text", "caption", "texts", "captions"),
    "image_id": ("image_id", "id"),
}
#: Read only where it is asked for: the key of a data set's classes is often called so too.
LABEL = "label"
Columns = Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class RawPair:
    """One record before its picture is opened: `image` is a path, the file's bytes, or None (held elsewhere).

    label: 1 where picture and text match, 0 where not, in sets of labelled pairs. text_id: identity of the text
    where the set gives one. row: the picture's place where it is held elsewhere, if not the record's own number.
    """

    source: str
    line: int | None
    image: str | bytes | None
    texts: tuple[str, ...]
    image_id: str | None = None
    empty_texts: int = 0
    label: int | None = None
    text_id: str | None = None
    row: int | None = None


def stable_id(key: str | int | bytes) -> int:
    """A 63-bit integer from an image id, the same in every process and Python (blake2b, not `hash`).

    12 and "12" are one id. Two different ids of ten million collide with probability 5e-6.
    """
    data = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def stable_ids(keys: Sequence[str | int]) -> np.ndarray:
    """`stable_id` of each key: (N,) int64."""
    known: dict[str | int, int] = {}
    out = np.empty(len(keys), dtype=np.int64)
    for position, key in enumerate(keys):
        value = known.get(key)
        if value is None:
            value = known[key] = stable_id(key)
        out[position] = value
    return out


def content_id(data: bytes) -> str:
    """An id for a picture that has none: a digest of its bytes."""
    return "blake2b:" + hashlib.blake2b(data, digest_size=8).hexdigest()


def resolve_columns(names: Sequence[str], columns: Columns = None) -> dict[str, str]:
    """Which of `names` hold image, text and (where there is one) image_id.

    `columns` maps some of "image", "text", "image_id" to the user's own names; `{"label": ...}` names the column
    that says whether a pair matches (1) or not (0).

    Raises:
        ValueError: a named column is missing, or nothing fits.
    """
    wanted = dict(columns) if isinstance(columns, Mapping) else {}
    unknown = set(wanted) - {*ALIASES, LABEL}
    if unknown:
        raise ValueError(
            f"columns has the keys {sorted(unknown)}; it maps {', '.join([*ALIASES, LABEL])} to your names"
        )
    found: dict[str, str] = {}
    if LABEL in wanted:
        if wanted[LABEL] not in names:
            raise ValueError(f"no column {wanted[LABEL]!r}; there are {list(names)}")
        found[LABEL] = wanted[LABEL]
    for field, aliases in ALIASES.items():
        if field in wanted:
            if wanted[field] not in names:
                raise ValueError(f"no column {wanted[field]!r}; there are {list(names)}")
            found[field] = wanted[field]
            continue
        match = next((alias for alias in aliases if alias in names), None)
        if match is not None:
            found[field] = match
        elif field != "image_id":
            raise ValueError(
                f"no column for the {field} ({', '.join(aliases)}); there are {list(names)}. "
                f"Name yours with columns={{'{field}': ...}}"
            )
    return found


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8 (no lone surrogates)."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def clean_texts(value: object) -> tuple[tuple[str, ...], int]:
    """The non-empty texts of a record, stripped, and how many were empty.

    Raises:
        ValueError: neither a string nor a list of strings, or nothing left.
    """
    if value is None:
        raise ValueError("empty caption")
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"the text is {type(value).__name__}, not a string or a list of strings")
    texts = []
    for item in items:
        if item is not None and not isinstance(item, str):
            raise ValueError(f"a text is {type(item).__name__}, not a string")
        stripped = (item or "").strip()
        if not is_unicode(stripped):
            raise ValueError("a text is not valid Unicode (lone surrogates: a file in another encoding?)")
        if stripped:
            texts.append(stripped)
    if not texts:
        raise ValueError("empty caption")
    return tuple(texts), len(items) - len(texts)


def read_label(value: object) -> int:
    """1 for a match, 0 for none, from what a file holds.

    Raises:
        ValueError: anything but 0, 1, "0", "1", false or true.
    """
    if isinstance(value, bool | int) and value in (0, 1):
        return int(value)
    if isinstance(value, str) and value.strip() in ("0", "1"):
        return int(value)
    reason = "no label" if value is None else f"the label is {value!r:.40}"
    raise ValueError(f"{reason}; a labelled pair has 1 (match) or 0 (no match)")


def picture_folder(source: str) -> Path:
    """Where the relative picture paths of a file begin: its folder, or the folder itself."""
    path = Path(source)
    return path if path.is_dir() else path.parent


def picture_id(pair: RawPair, root: Path, apart: bool) -> str | None:
    """The id of a pair's picture: its own, else its path as the file gives it or, of bytes in an archive, where it
    lies in it; with what leads to `root` or the archive where `apart`, since another folder may hold the same names.
    """
    if pair.image_id is not None:
        return pair.image_id
    if isinstance(pair.image, bytes):
        return pair.source if apart else Path(pair.source).relative_to(root).as_posix()
    return str(root / pair.image) if apart and pair.image is not None else pair.image


def require_true_pairs(learner: str, *parts: object) -> None:
    """Refuse labelled pairs where every pair is taken for a match.

    Raises:
        ValueError: one of the sets of pairs has labels.
    """
    if any(getattr(part, "labelled", False) for part in parts):
        raise ValueError(
            f"these are labelled pairs, and {learner} learns from true ones: `r2d2 finetune matching` learns from both"
        )


def make_pair(row: Mapping, columns: Mapping[str, str], source: str, line: int | None) -> RawPair | Problem:
    """A record from one row's values, or what is wrong with it. Pictures are not looked at."""
    image = row.get(columns["image"])
    if image is None or image == "":
        return Problem(source, line, f"no image ({columns['image']} is empty)")
    if not isinstance(image, str | bytes):
        return Problem(source, line, f"the image is {type(image).__name__}, not a path")
    if isinstance(image, str) and ("\0" in image or not is_unicode(image)):
        return Problem(source, line, "the image path holds a NUL character or is not valid Unicode")
    try:
        texts, empty = clean_texts(row.get(columns["text"]))
        label = read_label(row.get(columns[LABEL])) if LABEL in columns else None
    except ValueError as error:
        return Problem(source, line, str(error))
    image_id = row.get(columns["image_id"]) if "image_id" in columns else None
    if image_id is not None and not isinstance(image_id, str | int):
        return Problem(source, line, f"the image_id is {type(image_id).__name__}, not a string or an integer")
    image_id = None if image_id is None or image_id == "" else str(image_id)
    return RawPair(source, line, image, texts, image_id, empty, label)

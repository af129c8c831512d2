"""The common shape of a record, and the rules that make one from what a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .report import Note, Problem

# first the name to write, then the ones also understood
ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "file_name", "path", "img"),
    "text": ("text", "caption", "texts", "captions"),
    "image_id": ("image_id", "id"),
}
#: Taken for these too where there is no other, whatever their case and blanks; the reader says so.
GUESSES: dict[str, tuple[str, ...]] = {
    "image": (
        *("filename", "filepath", "file_path", "image_file", "image_filename", "image_name", "img_path", "picture"),
        *("photo", "图片", "图像", "照片", "图", "图片路径", "图像路径", "图片文件", "图片名", "文件名", "文件路径"),
    ),
    "text": (
        *("title", "description", "sentence", "标题", "描述", "文本", "文字", "说明", "内容", "txt"),
        *("图片描述", "图像描述", "图片说明", "中文描述", "文字描述"),
    ),
    "image_id": (),
}
#: Read only where it is asked for: the key of a data set's classes is often called so too.
LABEL = "label"
#: The same, of what belongs into one batch.
GROUP = "group"
#: A text of these alone is empty: zero-width characters, direction marks, the byte-order mark, the soft hyphen.
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad \t\r\n"
Columns = Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True)
class Reading:
    """How a reader reads.

    Args:
        columns: as in `load_pairs`.
        encoding: of text files; None: UTF-8, UTF-16 or GB18030, see `text_files`.
        captions: whether a record without a caption is bad. An index takes pictures without.
        image_root: where relative paths begin, if not in the folder of the file.
        metadata: whether records hold the other columns too.
    """

    columns: Columns = None
    encoding: str | None = None
    captions: bool = True
    image_root: Path | None = None
    metadata: bool = False

    @property
    def grouped(self) -> bool:
        """Whether a column of groups was asked for."""
        return isinstance(self.columns, Mapping) and GROUP in self.columns


#: No names, the encoding found out, captions needed.
PLAIN = Reading()


@dataclass(frozen=True, slots=True)
class Member:
    """Where a picture lies in an archive: its name there, and its bytes' place and number in an uncompressed local
    one that can be read again (else offset is None)."""

    name: str
    offset: int | None
    size: int


@dataclass(frozen=True, slots=True)
class RawPair:
    """One record before its picture is opened: `image` is a path, the file's bytes, or None (held elsewhere).

    Args:
        texts: its captions; none only where `Reading.captions` allows it.
        member: where the bytes lie in an archive.
        label: 1 where picture and text match, 0 where not, in sets of labelled pairs.
        text_id: identity of the text where the set gives one.
        group: of pairs that belong into one batch, where it was asked for.
        row: the picture's place where it is held elsewhere, if not the record's own number.
        metadata: the other columns as JSON, where `Reading.metadata` asks for them and there are any.
    """

    source: str
    line: int | None
    image: str | bytes | None
    texts: tuple[str, ...]
    image_id: str | None = None
    empty_texts: int = 0
    label: int | None = None
    text_id: str | None = None
    group: str | None = None
    row: int | None = None
    member: Member | None = None
    metadata: str | None = None


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


def resolve_columns(names: Sequence[str], reading: Reading = PLAIN) -> dict[str, str]:
    """Which of `names` hold image, text and (where there is one) image_id.

    Of usual names the first of `ALIASES` goes before the others; of those, one alone is taken.

    Args:
        reading: its `columns` maps some of "image", "text", "image_id" to the user's own names; `{"label": ...}` names
            the column that says whether a pair matches (1) or not (0), `{"group": ...}` that of groups of pairs.

    Raises:
        ValueError: a named column is missing, nothing fits, or several names do.
    """
    wanted = dict(reading.columns) if isinstance(reading.columns, Mapping) else {}
    if unknown := set(wanted) - {*ALIASES, LABEL, GROUP}:
        known = ", ".join([*ALIASES, LABEL, GROUP])
        raise ValueError(f"columns has the keys {sorted(unknown)}; it maps {known} to your names")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1 and name):
        raise ValueError(f"several columns are called {twice[0]!r}; there are {_shown(names)}: rename one")
    found: dict[str, str] = {}
    for field, name in wanted.items():
        found[field] = next((each for each in names if each == name or each.strip() == name.strip()), "")
        if not found[field]:
            raise ValueError(f"no column {name!r}; there are {_shown(names)}")
    for field, aliases in ALIASES.items():
        if field in wanted:
            continue
        if aliases[0] in names:
            found[field] = aliases[0]
            continue
        usual = {*aliases, *GUESSES[field]}
        fitting = [name for name in names if _plain(name) in usual and name not in found.values()]
        if len(fitting) > 1:
            option = f" ({COLUMN_OPTIONS[field]})" if field in COLUMN_OPTIONS else ""
            raise ValueError(
                f"the {field} may be in {' or '.join(map(repr, fitting))}: name one with "
                f"columns={{'{field}': {fitting[0]!r}}}{option}"
            )
        if fitting:
            found[field] = fitting[0]
        elif field == "image" or (field == "text" and reading.captions):
            raise ValueError(
                f"no column for the {field} ({', '.join(aliases)}); there are {_shown(names)}. "
                f"Name yours with columns={{'{field}': ...}} ({COLUMN_OPTIONS[field]})"
            )
    return found


#: What names a column on the command line.
COLUMN_OPTIONS = {"image": "--image-column", "text": "--text-column"}


def guess_notes(found: Mapping[str, str], reading: Reading, source: str, names: Iterable[str] = ()) -> Iterator[Note]:
    """Which columns were taken though their names are none of ours; and of all `names`, given where every record has
    them, those that might have been captions where none is."""
    wanted = reading.columns if isinstance(reading.columns, Mapping) else {}
    for field, name in found.items():
        if field in ALIASES and field not in wanted and name not in ALIASES[field]:
            option = f", {COLUMN_OPTIONS[field]}" if field in COLUMN_OPTIONS else ""
            yield Note(source, None, f"column {name!r} is taken for the {field} (another: columns={option})")
    if "text" not in found and (others := sorted({name for name in names if name.strip()} - set(found.values()))):
        reason = f"no column is taken for captions (columns=, {COLUMN_OPTIONS['text']}); there are {_shown(others)}"
        yield Note(source, None, reason)


def _shown(names: Sequence[str]) -> str:
    listed = ", ".join(f"{name!r:.60}" for name in list(names)[:20])
    return f"[{listed}{', …' if len(names) > 20 else ''}]"


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().strip("\ufeff").casefold())


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8 (no lone surrogates)."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def clean_texts(value: object, required: bool = True) -> tuple[tuple[str, ...], int]:
    """The non-empty texts of a record, stripped, and how many were empty beside others.

    Raises:
        ValueError: neither a string nor a list of strings, or nothing left of what is required.
    """
    if value is None:
        value = []
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
        if stripped.strip(_INVISIBLE):
            texts.append(stripped)
    if not texts and required:
        raise ValueError("empty caption")
    return tuple(texts), len(items) - len(texts) if texts else 0


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


def image_folder(source: str) -> Path:
    """Where the relative picture paths of a file begin: its folder, or the folder itself."""
    path = Path(source)
    return path if path.is_dir() else path.parent


def image_id_of(pair: RawPair, root: Path, apart: bool) -> str | None:
    """The id of a pair's picture: its own, else its path as the file gives it or, of bytes in an archive, where it
    lies in it; with what leads to `root` or the archive where `apart`, since another folder may hold the same names.
    """
    if pair.image_id is not None:
        return pair.image_id
    if isinstance(pair.image, bytes):
        return pair.source if apart else Path(pair.source).relative_to(root).as_posix()
    if pair.image is None:
        return None
    return os.path.normpath(root / pair.image if apart else pair.image)


def require_true_pairs(learner: str, *parts: object) -> None:
    """Refuse labelled pairs where every pair is taken for a match.

    Raises:
        ValueError: one of the sets of pairs has labels.
    """
    if any(getattr(part, "labelled", False) for part in parts):
        raise ValueError(
            f"these are labelled pairs, and {learner} learns from true ones: `r2d2 finetune matching` learns from both"
        )


def image_reference(value: object) -> object:
    """What an image cell holds: bytes, a path, or nothing; other values come back as they are."""
    if isinstance(value, Mapping) and value and set(value) <= {"bytes", "path"}:
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes | None) and isinstance(path, str | None):
            return data or path or None
    return value


def make_pair(
    row: Mapping,
    columns: Mapping[str, str],
    source: str,
    line: int | None,
    reading: Reading = PLAIN,
    held: Mapping | None = None,
) -> RawPair | Problem:
    """A record from one row's values, or what is wrong with it. Pictures are not looked at.

    Args:
        columns: what `resolve_columns` found; without a text, the record has none.
        held: whose other columns are kept; default: the row's.
    """
    image = image_reference(row.get(columns["image"]))
    if image is None or image == "" or image == b"":
        return Problem(source, line, f"no image ({columns['image']} is empty)")
    if not isinstance(image, str | bytes):
        return Problem(source, line, f"the image is {type(image).__name__}, not a path")
    if isinstance(image, str) and ("\0" in image or not is_unicode(image)):
        return Problem(source, line, "the image path holds a NUL character or is not valid Unicode")
    try:
        texts, empty = clean_texts(row.get(columns.get("text")), reading.captions)
        label = read_label(row.get(columns[LABEL])) if LABEL in columns else None
    except ValueError as error:
        return Problem(source, line, str(error))
    image_id = row.get(columns["image_id"]) if "image_id" in columns else None
    if image_id is not None and (isinstance(image_id, bool) or not isinstance(image_id, str | int)):
        return Problem(source, line, f"the image_id is {type(image_id).__name__}, not a string or an integer")
    image_id = None if image_id is None or image_id == "" else str(image_id)
    if image_id is not None and ("\0" in image_id or not is_unicode(image_id)):
        return Problem(source, line, "the image_id holds a NUL character or is not valid Unicode")
    group = row.get(columns[GROUP]) if GROUP in columns else None
    if GROUP in columns and (not isinstance(group, str | int) or group == "" or not is_unicode(str(group))):
        return Problem(source, line, f"the group is {group!r:.40}, not a name or a number")
    metadata = other_columns(row if held is None else held, columns) if reading.metadata else None
    held_group = None if group is None else str(group)
    return RawPair(source, line, image, texts, image_id, empty, label, group=held_group, metadata=metadata)


def other_columns(row: Mapping, columns: Mapping[str, str]) -> str | None:
    """What a row holds beside image, text and id, as JSON; None where that is nothing.

    Empty values and NaN are left out, bytes too; what JSON has no word for, such as a date, is written as a string.
    """
    used = {*columns, *columns.values()}
    kept = {
        name: value
        for name, value in row.items()
        if name not in used and not isinstance(value, bytes) and value not in (None, "") and value == value
    }
    text = json.dumps(kept, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode() if kept else None

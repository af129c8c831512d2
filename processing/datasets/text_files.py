"""Text files as people have them: UTF-8 with or without a byte-order mark, UTF-16, GBK of Chinese Windows and Excel.

Lines end in LF, CRLF or CR. An encoding that is not named is found by these rules: a byte-order mark; UTF-16 by its
zero bytes; UTF-8 where most non-ASCII lines are UTF-8 (not where a few are: 一一 in GBK is UTF-8 by chance); GB18030
(which contains GBK and GB2312) where that decodes and nearly all characters are those of GB2312, which texts of another
encoding, read so, hardly ever are; else UTF-8. Lines that are none are those lines' problem. A guess comes as a `Note`.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .records import is_unicode
from .report import Note, Problem

_CHUNK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_ARCHIVES = ((b"PK\x03\x04", "a zip archive"), (b"7z\xbc\xaf", "a 7z archive"), (b"Rar!", "a rar archive"))
_LINE_END = re.compile(rb"\r\n|\r|\n")
#: So much of a text must be characters of GB2312 to be taken for GB18030.
_COMMON = 0.9
#: The captions of one picture are smaller.
LARGEST_TEXT = 1 << 24
ADVICE = "name the encoding with encoding= (--encoding gb18030, big5, …)"


@dataclass(frozen=True)
class Codec:
    """How a text is decoded.

    Args:
        guessed: neither named nor UTF-8 nor told by a byte-order mark.
    """

    name: str
    guessed: bool = False

    @property
    def title(self) -> str:
        """The encoding's usual name."""
        return "UTF-8" if self.name == "utf-8-sig" else self.name.upper()

    @property
    def errors(self) -> str:
        """UTF-8's bad bytes become lone surrogates; decoders of several bytes replace theirs."""
        return "surrogateescape" if self.name == "utf-8-sig" else "replace"

    def is_good(self, text: str) -> bool:
        """Whether the text was decoded without an error."""
        return is_unicode(text) if self.name == "utf-8-sig" else "\ufffd" not in text

    def problem(self, text: str) -> str:
        """Why a text is not good."""
        if self.name != "utf-8-sig":
            return f"not {self.title}"
        try:
            text.encode("utf-8", "surrogateescape").decode("utf-8")
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            return f"not UTF-8: {error.reason} at byte {error.start}"
        return "not UTF-8"

    def notes(self, source: str) -> Iterator[Note]:
        """That the encoding was guessed."""
        if self.guessed:
            reason = f"read as {self.title}, being no UTF-8 (another: encoding=, --encoding)"
            yield Note(source, None, reason, counts=((_files(source), 1),))


def _files(source: str) -> str:
    return f"{Path(source).suffix or 'file'}"


UTF8 = Codec("utf-8-sig")


def named_codec(encoding: str) -> Codec:
    """The codec of an encoding that the user named.

    Raises:
        ValueError: Python knows no such encoding of text.
    """
    try:
        "".encode(encoding)
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ValueError(
            f"encoding is {encoding!r}, which Python does not know: utf-8, gb18030, big5, utf-16, …"
        ) from error
    return UTF8 if name in ("utf-8", "utf-8-sig") else Codec("gb18030" if name in ("gb2312", "gbk") else name)


def codec_of(path: str | os.PathLike, encoding: str | None = None) -> Codec:
    """The encoding of a text file: the one that was named, or by the rules above.

    Reads up to the first megabyte that is not plain ASCII.

    Raises:
        ValueError: see `named_codec`; the file is an archive, as spreadsheets are.
    """
    with open(path, "rb") as file:
        if what := other_archive(file.read(8)):
            raise ValueError(f"{path} is {what}, no text: unpack it, or save the spreadsheet as CSV")
        if encoding is not None:
            return named_codec(encoding)
        file.seek(0)
        rest = b""
        while chunk := file.read(_CHUNK):
            data = rest + chunk
            if not chunk.isascii() or b"\0" in chunk:
                whole = len(chunk) < _CHUNK or b"\0" in chunk
                return _codec_of_bytes(data if whole else _whole_lines(data))
            rest = data[-200:] if b"\n" not in data[-200:] else data[data.rindex(b"\n") + 1 :]
    return UTF8


def other_archive(head: bytes) -> str | None:
    """What kind of archive that is no tar the first bytes of a file begin, or None."""
    return next((what for magic, what in _OTHER_ARCHIVES if head.startswith(magic)), None)


def decode_text(data: bytes, encoding: str | None = None) -> tuple[str, Codec]:
    """A small text, such as the captions beside a picture, and how it was decoded; old line ends become LF.

    Raises:
        ValueError: it is not in the encoding; none that can be guessed.
    """
    codec = named_codec(encoding) if encoding is not None else _codec_of_bytes(data)
    try:
        text = data.decode(codec.name)
    except UnicodeError as error:
        place = f": {error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"not {codec.title}{place}; {ADVICE}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n"), codec


def read_lines(path: str | os.PathLike, encoding: str | None = None) -> Iterator[tuple[int, str] | Problem]:
    """(number from 1, line without its end) of a text file; lines that cannot be decoded come as a `Problem`."""
    source, codec = os.fspath(path), codec_of(path, encoding)
    yield from codec.notes(source)
    bad = False
    with open(path, encoding=codec.name, errors=codec.errors) as file:
        for number, line in enumerate(file, start=1):
            if codec.is_good(line):
                yield number, line.removesuffix("\n")
            else:
                bad = True
                yield Problem(source, number, codec.problem(line))
    if bad:
        yield advice_note(source)


def advice_note(source: str) -> Note:
    """What to do about lines in another encoding."""
    return Note(source, None, f"lines that cannot be decoded: {ADVICE}, or write the file as UTF-8")


def _whole_lines(data: bytes) -> bytes:
    ends = [match.end() for match in _LINE_END.finditer(data, max(len(data) - 100_000, 0))]
    return data[: ends[-1]] if ends else data[: data.rfind(b",") + 1] or data


def _codec_of_bytes(data: bytes) -> Codec:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return Codec(name) if name != "utf-8-sig" else UTF8
    if data.isascii() and b"\0" not in data:
        return UTF8
    if b"\0" in data and (guess := _utf16(data)) is not None:
        return Codec(guess, guessed=True)
    lines = [line for line in _LINE_END.split(data) if not line.isascii()]
    if 2 * sum(map(_is_utf8, lines)) > len(lines) or not _is_gb18030(lines):
        return UTF8
    return Codec("gb18030", guessed=True)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_gb18030(lines: list[bytes]) -> bool:
    try:
        wide = "".join(char for line in lines for char in line.decode("gb18030") if not char.isascii())
    except UnicodeDecodeError:
        return False
    common = len(wide.encode("gb2312", "ignore")) // 2
    # a single word may be anything
    return common >= _COMMON * len(wide) and (len(lines) > 1 or common >= 4)


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a mark, by the zero bytes of its line ends, quotes and commas."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if max(even, odd) < 4 * min(even, odd) + 2:
        return None
    name = "utf-16-le" if odd > even else "utf-16-be"
    try:
        codecs.getincrementaldecoder(name)().decode(data)  # the sample may end within a character
    except UnicodeDecodeError:
        return None
    return name

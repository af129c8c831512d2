"""CSV and TSV with a header, or without one if `columns` is a list of names.

CSV follows RFC 4180: fields may be quoted and then hold commas and line breaks; blanks behind a comma are none of the
field's. In TSV a quotation mark is a character like any other, since captions hold them, and a field holds neither
tabs nor line breaks. Empty fields at the end of a row, which spreadsheets leave, are no fields.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from .records import PLAIN, RawPair, Reading, guess_notes, make_pair, resolve_columns
from .report import Problem
from .text_files import advice_note, codec_of

_OTHER_DELIMITERS = {"\t": "name it .tsv, or read it as format tsv", ",": "name it .csv, or read it as format csv"}


def read_delimited(
    path: Path,
    reading: Reading = PLAIN,
    delimiter: str = ",",
) -> Iterator[RawPair | Problem]:
    """Records of a file in order; malformed rows come as a `Problem` with the line where they begin.

    Raises:
        ValueError: the header names no image or no text column.
    """
    source, codec = str(path), codec_of(path, reading.encoding)
    yield from codec.notes(source)
    quoting: Literal[3, 0] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    undecoded = False
    with open(path, encoding=codec.name, errors=codec.errors, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=delimiter == ",")
        names: list[str] | None = None
        resolved: dict[str, str] = {}
        if reading.columns is not None and not isinstance(reading.columns, Mapping):
            names = list(reading.columns)
            resolved = resolve_columns(names, reading)
        while True:
            begin = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                spoiled = max(reader.line_num - begin + 1, 1)
                span = "" if spoiled == 1 else f" (lines {begin} to {reader.line_num}: an unclosed quote?)"
                yield Problem(source, begin, f"malformed row: {error}{span}", spoiled, incomplete=True)
                continue
            if not any(field.strip("\ufeff \t") for field in row):
                continue
            if names is None and row[0].strip("\ufeff").lower().startswith("sep="):
                continue  # Excel's note of the delimiter
            if names is None:
                names = _header(row)
                try:
                    resolved = resolve_columns(names, reading)
                except ValueError as error:
                    raise ValueError(
                        _header_message(source, names, delimiter, codec.is_good("".join(row)), error)
                    ) from error
                yield from guess_notes(resolved, reading, source, names)
                continue
            row = _fitted(row, names)
            if len(row) != len(names):
                yield Problem(source, begin, f"{len(row)} fields, not {len(names)}")
            elif not all(map(codec.is_good, row)):
                undecoded = True
                yield Problem(source, begin, f"not {codec.title}")
            else:
                fields = dict(zip(names, row, strict=True))
                image = resolved["image"]
                yield make_pair({**fields, image: fields[image].strip()}, resolved, source, begin, reading)
    if undecoded:
        yield advice_note(source)


def _header(row: list[str]) -> list[str]:
    names = [name.strip().strip("\ufeff").strip() for name in row]
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _fitted(row: list[str], names: list[str]) -> list[str]:
    """The row without empty fields beyond the header's."""
    end = len(row)
    while end > len(names) and not row[end - 1].strip():
        end -= 1
    return row[:end]


def _header_message(source: str, names: list[str], delimiter: str, decoded: bool, error: ValueError) -> str:
    if not decoded:
        return f"{source}: header line: not in the encoding it was read in: name it with encoding= (--encoding gb18030)"
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark != delimiter and mark in names[0]), None)
    if other is not None:
        return (
            f"{source}: no column for the image: its fields are parted by {other!r}, not by {delimiter!r}: "
            f"{_OTHER_DELIMITERS.get(other, 'write it with commas')}"
        )
    return f"{source}: header line: {error}, or give columns=['image', 'text', ...] for a file without header"

"""CSV and TSV with a header, or without one if `columns` is a list of names.

CSV follows RFC 4180: fields may be quoted and then hold commas and line breaks. In TSV a quotation mark is a
character like any other, since captions hold them, and a field holds neither tabs nor line breaks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from .records import Columns, RawPair, is_unicode, make_pair, resolve_columns
from .report import Problem

_OTHER_DELIMITERS = {"\t": "name it .tsv, or read it as format tsv", ",": "name it .csv, or read it as format csv"}


def read_delimited(path: Path, columns: Columns = None, delimiter: str = ",") -> Iterator[RawPair | Problem]:
    """Records of a UTF-8 file in order; malformed rows come as a `Problem` with the line where they begin.

    Raises:
        ValueError: the header names no image or no text column.
    """
    source = str(path)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # surrogateescape: a row in another encoding is that row's problem, not the file's
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        names: list[str] | None = None
        resolved: dict[str, str] = {}
        if columns is not None and not isinstance(columns, Mapping):
            names = list(columns)
            resolved = resolve_columns(names)
        while True:
            begin = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                spoiled = max(reader.line_num - begin + 1, 1)
                span = "" if spoiled == 1 else f" (lines {begin} to {reader.line_num}: an unclosed quote?)"
                yield Problem(source, begin, f"malformed row: {error}{span}", spoiled, incomplete=True)
                continue
            if not row or row == [""]:
                continue
            if names is None:
                names = [name.strip() for name in row]
                try:
                    resolved = resolve_columns(names, columns)
                except ValueError as error:
                    other = next(
                        (mark for mark in ";\t|," if len(names) == 1 and mark != delimiter and mark in names[0]), None
                    )
                    if other is not None:
                        raise ValueError(
                            f"{source}: its fields are parted by {other!r}, not by {delimiter!r}: "
                            f"{_OTHER_DELIMITERS.get(other, 'write it with commas')}"
                        ) from error
                    raise ValueError(
                        f"{source}: header line: {error}, or give columns=['image', 'text', ...] "
                        "for a file without header"
                    ) from error
                continue
            if len(row) != len(names):
                yield Problem(source, begin, f"{len(row)} fields, not {len(names)}")
            elif not all(is_unicode(field) for field in row):
                yield Problem(source, begin, "not UTF-8")
            else:
                yield make_pair(dict(zip(names, row, strict=True)), resolved, source, begin)

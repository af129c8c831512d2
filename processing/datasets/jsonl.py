"""JSON lines: one object per line with `image` (a path), `text` (a string or several), maybe `image_id`.

    {"image": "cats/1.jpg", "text": "一只猫", "image_id": 17}
    {"image": "cats/2.jpg", "text": ["两只猫", "猫在睡觉"]}

Lines may differ in their keys. Blank lines are no records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .records import Columns, RawPair, make_pair, resolve_columns
from .report import Problem


def read_jsonl(path: Path, columns: Columns = None) -> Iterator[RawPair | Problem]:
    """Records of a UTF-8 file in order; a malformed line comes as a `Problem`.

    Raises:
        ValueError: the file is one JSON array.
    """
    source = str(path)
    resolved: dict[tuple[str, ...], dict[str, str]] = {}
    first = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Problem(source, number, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            except (ValueError, RecursionError) as error:
                if first and line.lstrip().startswith(b"["):
                    raise ValueError(_array_message(source)) from error
                yield Problem(source, number, f"not JSON: {error}")
                continue
            if first and isinstance(row, list):
                raise ValueError(_array_message(source))
            first = False
            if not isinstance(row, dict):
                yield Problem(source, number, f"a JSON {type(row).__name__}, not an object")
                continue
            names = tuple(row)
            try:
                if names not in resolved:
                    resolved[names] = resolve_columns(names, _present(names, columns))
            except ValueError as error:
                yield Problem(source, number, str(error))
                continue
            yield make_pair(row, resolved[names], source, number)


def _present(names: tuple[str, ...], columns: Columns) -> Columns:
    """An image_id may be absent from single lines."""
    if isinstance(columns, dict) and columns.get("image_id") not in (None, *names):
        return {field: name for field, name in columns.items() if field != "image_id"}
    return columns


def _array_message(source: str) -> str:
    return f"{source} is one JSON array; write one object per line (JSON lines)"

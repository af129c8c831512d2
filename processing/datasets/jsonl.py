"""JSON lines: one object per line with `image` (a path), `text` (a string or several), maybe `image_id`.

    {"image": "cats/1.jpg", "text": "一只猫", "image_id": 17}
    {"image": "cats/2.jpg", "text": ["两只猫", "猫在睡觉"]}

Lines may differ in their keys. Blank lines are no records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .records import PLAIN, RawPair, Reading, guess_notes, make_pair, resolve_columns
from .report import Problem
from .text_files import read_lines


def read_jsonl(path: Path, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Records of a file in order; a malformed line comes as a `Problem`.

    Raises:
        ValueError: the file is one JSON array, or one object over several lines.
    """
    source = str(path)
    resolved: dict[tuple[str, ...], dict[str, str]] = {}
    first = True
    for item in read_lines(path, reading.encoding):
        if isinstance(item, Problem):
            yield item
            continue
        number, line = item
        line = line.strip().strip("\ufeff")
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if first and (line.startswith("[") or line == "{"):
                raise ValueError(_whole_message(source, "array" if line[0] == "[" else "object")) from error
            yield Problem(source, number, f"not JSON: {_reason(error)}")
            continue
        if first and isinstance(row, list):
            raise ValueError(_whole_message(source, "array"))
        first = False
        if not isinstance(row, dict):
            yield Problem(source, number, f"a JSON {type(row).__name__}, not an object")
            continue
        names = tuple(row)
        try:
            if names not in resolved:
                present = _present(names, reading)
                resolved[names] = resolve_columns(names, present)
                yield from guess_notes(resolved[names], present, source)
        except ValueError as error:
            yield Problem(source, number, str(error))
            continue
        yield make_pair(row, resolved[names], source, number, reading)


def _present(names: tuple[str, ...], reading: Reading) -> Reading:
    """An image_id may be absent from single lines, a caption too where it need not be there."""
    if not isinstance(reading.columns, Mapping):
        return reading
    optional = {"image_id"} if reading.captions else {"image_id", "text"}
    kept = {field: name for field, name in reading.columns.items() if name in names or field not in optional}
    return replace(reading, columns=kept)


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _whole_message(source: str, kind: str) -> str:
    return f"{source} is one JSON {kind}; write one object per line (JSON lines)"

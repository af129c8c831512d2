"""Objects of a JSON file with the line each begins in: JSON lines, or one array of objects.

The benchmark files call themselves `.json` and are one or the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .report import Problem

_BLANK = " \t\r\n"


def read_json_objects(path: Path) -> Iterator[tuple[int, dict] | Problem]:
    """(line, object) in order; whatever is no object comes as a `Problem`.

    A broken line of JSON lines spoils itself alone; behind a syntax error within an array nothing can be read.
    An array is read into memory as a whole.
    """
    with open(path, "rb") as file:
        while (first := file.read(1)) and first in b" \t\r\n\xef\xbb\xbf":
            pass
    yield from _array(path) if first == b"[" else _lines(path)


def _lines(path: Path) -> Iterator[tuple[int, dict] | Problem]:
    source = str(path)
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
            except (ValueError, RecursionError) as error:
                yield Problem(source, number, f"not JSON: {error}")
            else:
                yield (number, row) if isinstance(row, dict) else _not_an_object(source, number, row)


def _array(path: Path) -> Iterator[tuple[int, dict] | Problem]:
    source = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Problem(source, 1, f"not UTF-8: {error.reason} at byte {error.start}", incomplete=True)
        return
    decoder = json.JSONDecoder()
    place, line, element = text.index("[") + 1, 1, 0
    counted = 0  # lines are counted up to here
    while True:
        place = _skip(text, place)
        line += text.count("\n", counted, place)
        counted = place
        if text[place : place + 1] == "]" and element == 0:
            return
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            yield Problem(source, line, f"not JSON from element {element + 1} on: {reason}", incomplete=True)
            return
        element += 1
        yield (line, row) if isinstance(row, dict) else _not_an_object(source, line, row)
        place = _skip(text, place)
        if text[place : place + 1] == "]":
            return
        if text[place : place + 1] != ",":
            line += text.count("\n", counted, place)
            yield Problem(source, line, f"the array ends early, behind element {element}", incomplete=True)
            return
        place += 1


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _BLANK:
        place += 1
    return place


def _not_an_object(source: str, line: int, row: object) -> Problem:
    return Problem(source, line, f"a JSON {type(row).__name__}, not an object")

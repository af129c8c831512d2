"""Objects of a JSON file with the line each begins in: JSON lines, or one array of objects.

The benchmark files call themselves `.json` and are one or the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .report import Problem
from .text_files import advice_note, codec_of, read_lines

_BLANK = " \t\r\n"


def read_json_objects(path: Path, encoding: str | None = None) -> Iterator[tuple[int, dict] | Problem]:
    """(line, object) in order; whatever is no object comes as a `Problem`.

    A broken line of JSON lines spoils itself alone; behind a syntax error within an array nothing can be read.
    An array is read into memory as a whole.
    """
    source, codec = str(path), codec_of(path, encoding)
    with open(path, encoding=codec.name, errors=codec.errors) as file:
        while (first := file.read(1)) and first in " \t\n\ufeff":
            pass
        if first == "[":
            file.seek(0)  # the lines before count too
            text = file.read()
    if first != "[":
        yield from _lines(path, encoding)
    elif not codec.is_good(text):
        yield Problem(source, 1, codec.problem(text), incomplete=True)
        yield advice_note(source)
    else:
        yield from codec.notes(source)
        yield from _array(text, source)


def _lines(path: Path, encoding: str | None) -> Iterator[tuple[int, dict] | Problem]:
    source = str(path)
    for item in read_lines(path, encoding):
        if isinstance(item, Problem):
            yield item
            continue
        number, line = item
        if not line.strip().strip("\ufeff"):
            continue
        try:
            row = json.loads(line.strip("\ufeff"))
        except (ValueError, RecursionError) as error:
            yield Problem(source, number, f"not JSON: {error}")
        else:
            yield (number, row) if isinstance(row, dict) else _not_an_object(source, number, row)


def _array(text: str, source: str) -> Iterator[tuple[int, dict] | Problem]:
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

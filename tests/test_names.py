"""Files and identifiers are called as the ecosystem calls things: one spelling of a word, one word for a thing."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("modeling_r2d2", "processing", "hub_cards", "benchmarks", "examples", "docs", "tests")

#: Folders that 0.1 saved name a class by this path.
SAVED = "modeling_r2d2/interoperation/"
#: word -> the one that is used instead
RETIRED = {
    **dict.fromkeys(("picture", "pictures"), "image, images"),
    **dict.fromkeys(("licence", "licences"), "license"),
    **dict.fromkeys(("centre", "centres", "centred"), "center"),
    **dict.fromkeys(("colour", "colours", "coloured", "grey"), "color, gray"),
    **dict.fromkeys(("normalise", "normalised", "normalisation", "initialise", "initialised"), "-ize"),
    "interoperation": "integrations",
    **dict.fromkeys(("aside", "anew", "built", "told", "say", "said"), "what the thing is"),
}


def words(name: str) -> list[str]:
    """Of `snake_case` and `CamelCase`, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def names(path: Path) -> Iterator[tuple[str, str]]:
    """Where and what: the file's own name and every identifier in it."""
    place = path.relative_to(ROOT)
    yield str(place), place.as_posix()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NAME:
                yield f"{place}:{token.start[0]}", token.string


def test_no_name_has_a_retired_word():
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    files = [path for path in files if not path.relative_to(ROOT).as_posix().startswith(SAVED)]
    found = [
        f"{where}: {name} (instead of {word!r}: {RETIRED[word]})"
        for path in files
        for where, name in names(path)
        for word in words(name)
        if word in RETIRED
    ]
    assert not found, "\n".join(found)

"""Advice can be followed as it is given: every command and every option that the package's messages name exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from modeling_r2d2.cli import app
from tests.cli.test_errors import verbs

ROOT = Path(__file__).parents[2]
#: Of pip, and of the examples.
FOREIGN = {"--no-deps", "--pretrained", "--judge"}


def texts(file: Path) -> Iterator[str]:
    """Every string of a module; a hole in an f-string is a word."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "HOLE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


@pytest.fixture(scope="module")
def commands() -> dict:
    return verbs(typer.main.get_command(app))


@pytest.fixture(scope="module")
def messages() -> list[tuple[str, str]]:
    files = [file for name in ("modeling_r2d2", "processing", "hub_cards") for file in (ROOT / name).rglob("*.py")]
    return [(file.relative_to(ROOT).as_posix(), text) for file in sorted(files) for text in texts(file)]


def options_of(command) -> set[str]:
    return {name for each in command.params for name in [*each.opts, *each.secondary_opts]} | {"--help"}


def test_commands_that_are_named(commands, messages):
    found, wrong = 0, []
    for file, text in messages:
        for line in re.findall(r"`r2d2 ([^`\n]+)`", text):
            words = shlex.split(line)
            name = next((name for name in (" ".join(words[:2]), words[0]) if name in commands), None)
            if words[0] in ("HOLE", "VERB") or words == ["data"]:
                continue
            found += 1
            given = words[len(name.split()) :] if name else []
            if name is None or {word for word in given if word.startswith("--")} - options_of(commands[name]):
                wrong.append(f"{file}: {line}")
            elif any(word.startswith("--") for word in given):  # whole, so it must be read
                try:
                    commands[name].make_context(name, given)
                except Exception as error:  # typer's own kinds are private
                    wrong.append(f"{file}: {line}: {error}")
    assert wrong == []
    assert found > 50


def test_options_that_are_named(commands, messages):
    """`--vision-pooling` was once advised and did not exist."""
    known = {"--version", "--traceback"} | FOREIGN
    known = known.union(*(options_of(command) for command in commands.values()))
    found = {
        (option, file)
        for file, text in messages
        if file != "modeling_r2d2/app/style.py"  # variables of CSS
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", text)
    }
    assert sorted((option, file) for option, file in found if option not in known) == []
    assert len({option for option, _ in found}) > 40

"""Options that messages and guides name exist."""

import ast
import re
from pathlib import Path

import click
import typer

from modeling_r2d2.cli import app

ROOT = Path(__file__).parents[2]
#: Of other commands that messages advise to run, and of CSS.
OTHERS = {"--no-deps"}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def known_options() -> set[str]:
    found = {"--help"}

    def walk(command: click.Command) -> None:
        for parameter in command.params:
            found.update(parameter.opts)
            found.update(parameter.secondary_opts)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(typer.main.get_command(app))
    return found


def test_options_in_messages_exist():
    """Every `--option` in a string of the package is one of `r2d2`, or of the text-to-image example."""
    example = set(_OPTION.findall((ROOT / "examples" / "train_text_to_image.py").read_text(encoding="utf-8")))
    settings = (ROOT / "modeling_r2d2" / "text_to_image" / "settings.py").read_text(encoding="utf-8")
    example |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", settings, re.MULTILINE)}
    known = known_options() | OTHERS
    assert "--trust-remote-code" in known
    wrong = []
    for part in ("modeling_r2d2", "hub_cards", "processing"):
        for path in (ROOT / part).rglob("*.py"):
            if path.name in ("style.py", "img2dataset.py"):  # CSS; the options of the tool of that name
                continue
            allowed = known | (example if "text_to_image" in str(path) else set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names = set(_OPTION.findall(node.value)) - allowed
                    wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in sorted(names)]
    assert not wrong, "\n".join(wrong)

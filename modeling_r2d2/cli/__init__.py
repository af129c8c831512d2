"""The `r2d2` command: one module per verb, each thin over the Python interface of the same name."""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..processing.files import progress as bars
from . import data
from .app import app as app_page
from .calibrate import calibrate
from .card import card
from .commands import VerbGroup, add_verb
from .convert import convert
from .demo import demo
from .errors import run
from .evaluate import evaluate
from .examples import EXAMPLES, START
from .export import export
from .finetune import finetune
from .index import index
from .match import match
from .pretrain import pretrain
from .push import push
from .search import search
from .terminal import quiet_libraries

app = typer.Typer(
    name="r2d2",
    help=f"R2D2 and PRD2: Chinese vision-language models with pre-ranking and ranking.\n\n{START}",
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_data = typer.Typer(cls=VerbGroup, no_args_is_help=True)
_VERBS: dict[str, dict[str, Callable[[Any], None]]] = {
    "Search": {"index": index, "search": search, "app": app_page, "match": match},
    "Train": {"demo": demo, "pretrain": pretrain, "finetune": finetune},
    "Measure": {"evaluate": evaluate, "calibrate": calibrate},
    "Exchange": {"convert": convert, "export": export, "card": card, "push": push},
}
for panel, verbs in _VERBS.items():
    for name, verb in verbs.items():
        add_verb(app, name, verb, EXAMPLES[name], panel)
_DATA_VERBS: dict[str, Callable[[Any], None]] = {
    "check": data.check,
    "card": data.card,
    "matching-pairs": data.matching_pairs,
    "scenes": data.scenes,
}
for name, verb in _DATA_VERBS.items():
    add_verb(_data, name, verb, EXAMPLES[f"data {name}"])
app.add_typer(
    _data,
    name="data",
    help="Check a data set, write its card, make lists of matching pairs, write out the demo's scenes.",
    rich_help_panel="Data",
)

_TRACEBACK = "R2D2_TRACEBACK"
_settings = {"traceback": False}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"r2d2 {importlib.metadata.version('modeling-r2d2')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar=_TRACEBACK, help="Show where an error comes from, for a report.")
    ] = False,
) -> None:
    _settings["traceback"] = traceback


def main() -> None:
    """Entry point: whatever goes wrong ends with one clear line and a status other than 0, not with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Chinese, or a name that is no text
            stream.reconfigure(errors="backslashreplace")
    bars.show()
    _settings["traceback"] = bool(os.environ.get(_TRACEBACK))
    sys.exit(
        run(lambda: app(standalone_mode=False, prog_name="r2d2", obj=quiet_libraries), lambda: _settings["traceback"])
    )


__all__ = ["app", "main"]

"""The `r2d2` command: one module per verb, each thin over the Python interface of the same name."""

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from ..processing.files import progress as bars
from .app import app as app_page
from .calibrate import calibrate
from .card import card
from .convert import convert
from .data import data_app
from .demo import demo
from .errors import run
from .evaluate import evaluate
from .examples import EXAMPLES, START
from .export import export
from .finetune import finetune
from .index import index
from .match import match
from .options import verb as as_verb
from .pretrain import pretrain
from .push import push
from .search import search

app = typer.Typer(
    name="r2d2",
    help=f"R2D2 and PRD2: Chinese vision-language models with pre-ranking and ranking.\n\n{START}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables cut the names of options
)
for name, verb in {
    "index": index,
    "search": search,
    "app": app_page,
    "match": match,
    "demo": demo,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "convert": convert,
    "export": export,
    "card": card,
    "push": push,
}.items():
    app.command(name, epilog=f"Example: {EXAMPLES[name]}")(as_verb(verb))
app.add_typer(data_app)

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
    sys.exit(run(lambda: app(standalone_mode=False, prog_name="r2d2"), lambda: _settings["traceback"]))


__all__ = ["app", "main"]

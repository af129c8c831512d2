"""The `r2d2` command: one module per verb, each thin over the Python interface of the same name."""

import logging
import sys

import typer
from rich.console import Console
from rich.markup import escape

from .app import app as app_page
from .calibrate import calibrate
from .card import card
from .convert import convert
from .data import data_app
from .demo import demo
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .index import index
from .match import match
from .pretrain import pretrain
from .push import push
from .search import search

app = typer.Typer(
    name="r2d2",
    help="R2D2 and PRD2: Chinese vision-language models with pre-ranking and ranking.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(pretrain)
app.command()(finetune)
app.command()(convert)
app.command()(index)
app.command()(search)
app.command()(match)
app.command()(calibrate)
app.command()(evaluate)
app.command()(export)
app.command()(card)
app.command()(push)
app.command("app")(app_page)
app.add_typer(data_app)


def main() -> None:
    """Entry point: bad input ends with one clear line and exit status 2, not with a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        message = f"[red]r2d2: {type(error).__name__}:[/red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


__all__ = ["app", "main"]

"""How the commands write: answers to stdout, everything else to stderr, and no stranger's name steers the terminal."""

import logging
import sys
import warnings
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..processing.files.printable import printable


class Terminal(Console):
    """A rich console for texts that come from files and models.

    A string is printed as it is, without rich's markup, with its control characters as escapes and never wrapped: a
    path can be copied. A table is as wide as its content, whatever the terminal's width is, for the same reason.

    Args:
        stderr: write there.
        file: write to this file instead.
    """

    def __init__(self, stderr: bool = False, file: IO[str] | None = None):
        super().__init__(stderr=stderr, file=file, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, those in tables included, passes here."""
        return super().render_str(printable(text, lines=True), **options)

    def table(self, *columns: str, title: str | None = None) -> Table:
        """An empty table whose last column can be copied: no border follows it."""
        from rich import box

        return Table(
            *columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )

    def print_table(self, table: Table) -> None:
        """In one line a row."""
        for column in table.columns:
            column.no_wrap = True
        before, self.width = self.width, 10_000
        try:
            self.width = max(1, self.measure(table).maximum)
            self.print(table, crop=False)
        finally:
            self.width = before


def one_line(message: str) -> str:
    """Several lines of a message as one, for stderr; items of a list are parted by semicolons."""
    lines = [part for line in message.splitlines() if (part := line.strip())]
    line = ""
    for part in lines:
        gap = "" if not line else " " if line[-1] in ":;,.(" else "; "
        line += gap + part.removeprefix("- ")
    return line


class _Formatter(logging.Formatter):
    """A library's message as one line that steers no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def quiet_libraries() -> None:
    """Warnings on stderr and readable; no bars for loading weights, which would stand before every answer."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_verbosity_error()  # or its retries stand for half a minute before the answer …
    logging.getLogger("modeling_r2d2.inference.loading").setLevel(logging.INFO)  # … that there is no such folder here
    # … and how much room what is kept of a set takes, and on what a ranker was calibrated
    logging.getLogger("modeling_r2d2.training").setLevel(logging.INFO)
    downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads and sys.stderr.isatty():
        enable_progress_bars()
    for logger in (logging.getLogger(), logging.getLogger("transformers"), logging.getLogger("py.warnings")):
        for handler in logger.handlers:
            handler.setFormatter(_Formatter("%(message)s"))
    warnings.formatwarning = lambda message, category, *_, **__: f"{printable(str(message))} ({category.__name__})\n"


__all__ = ["Terminal", "one_line", "quiet_libraries"]

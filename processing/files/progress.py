"""Progress of what takes long: how much of how much is done, and how long the rest will take.

Shown by the command line, which calls `show`; a program that uses the package sees nothing.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

#: Seconds after which a bar appears, so that what is quick shows none; and between the lines of a log file.
_TERMINAL, _LOG = 1.0, 30.0
_state = {"shown": False}


def show() -> None:
    """From now on bars are drawn on stderr, in a terminal; elsewhere, in a log file, a line every half minute."""
    _state["shown"] = True


def bar(items: Iterable | None = None, doing: str = "", total: int | None = None, unit: str = "pictures") -> tqdm:
    """A bar over `items`, or one that `update(count)` moves; on stderr.

    Args:
        total: of items; default: their length, if they have one.
        unit: what is counted, in the plural.
    """
    if not _state["shown"]:
        return tqdm(items, disable=True)
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=doing,
        total=total,
        unit=f" {unit}",
        leave=False,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.1 if terminal else _LOG,
        miniters=1,
        delay=_TERMINAL if terminal else _LOG,
        file=sys.stderr if terminal else _Log(sys.stderr),
    )


class _Log:
    """A line for each state, where a bar could not be drawn over."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, state: str) -> None:
        if state := state.strip():
            self._file.write(state + "\n")

    def flush(self) -> None:
        self._file.flush()


__all__ = ["bar", "show"]

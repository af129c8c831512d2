"""The net below the commands: whatever fails ends with one line on stderr that names what was wrong and what helps."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

from ..processing.files.printable import printable
from .terminal import Terminal, one_line

USER, DEFECT, INTERRUPTED = 2, 1, 130

#: Words of a message that came from a library which names no remedy, and the remedy.
_REMEDIES = {
    "out of memory": "a smaller --batch-size or a smaller model needs less",
    "defaultcpuallocator": "a smaller --batch-size or a smaller model needs less",
    "no space left on device": "free some space, then run the command again",
    "too many open files": "raise the limit (ulimit -n) or use fewer --workers",
}
#: Modules whose distribution is called otherwise.
_DISTRIBUTIONS = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}
#: What libraries raise where a file is broken, beyond what the package raises itself.
_OF_FILES = ("SafetensorError", "BadZipFile", "ReadError", "UnpicklingError", "LZMAError", "YAMLError", "ParserError")


def run(command: Callable[[], int | None], show_traceback: Callable[[], bool]) -> int:
    """Call the command and say in one line what went wrong, if something did.

    Returns:
        the exit status: 0, or what the command returned; 2 where input has to change, 1 for a defect of the package,
        130 where it was interrupted.
    """
    try:
        status = command() or 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except MemoryError as error:
        _report("out of memory", error, show_traceback())
        return USER
    except Exception as error:
        if _is_broken_pipe(error):
            _leave_stdout()
            return DEFECT
        if hasattr(error, "format_message"):  # typer's, of options that it cannot read
            print(_usage(error), file=sys.stderr)
            return USER
        known = _is_users(error)
        message = _message(error)
        if not known and not show_traceback():
            message += " (this may be a defect of the package: R2D2_TRACEBACK=1 before the command shows where)"
        _report(message, error, show_traceback())
        return USER if known else DEFECT
    if status == INTERRUPTED:
        print("r2d2: interrupted", file=sys.stderr)
    return status


def _message(error: BaseException) -> str:
    """One line with the kind of the error, what it says, and a remedy where the library names none."""
    text = re.sub(r"^\[Errno \d+\] ", "", one_line(str(error)))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        text = f"{name}: {error.strerror}"
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    if isinstance(error, RecursionError):
        text = "nested too deeply to be read"
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in text.lower()), None)
    if isinstance(error, ImportError) and "pip install" not in text and (extra := _extra_of(error.name)):
        remedy = f"pip install 'modeling-r2d2[{extra}]'"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{text}: {remedy}" if remedy else text


def _extra_of(module: str | None) -> str | None:
    """The smallest of the package's extras that brings a module."""
    if not module:
        return None
    name = module.partition(".")[0]
    wanted = _DISTRIBUTIONS.get(name, name).replace("_", "-").lower()
    found: dict[str, int] = {}
    named = set()
    try:
        requirements = metadata.requires("modeling-r2d2") or []
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        distribution, _, condition = requirement.partition(";")
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", condition):
            found[extra[1]] = found.get(extra[1], 0) + 1
            if re.split(r"[\s<>=!~\[(]", distribution.strip())[0].replace("_", "-").lower() == wanted:
                named.add(extra[1])
    return min(named - {"all", "dev"}, key=lambda extra: (found[extra], extra), default=None)


def _report(message: str, error: BaseException, with_traceback: bool) -> None:
    if with_traceback:
        traceback.print_exception(error)
    Terminal(stderr=True).print(f"r2d2: {printable(message)}", style="red" if sys.stderr.isatty() else None)


def _is_users(error: BaseException) -> bool:
    """Whether it is of the kinds that files, options and the machine cause, not a slip in the package."""
    if isinstance(error, ValueError | OSError | ImportError | EOFError | RecursionError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & set(_OF_FILES) or any(name.startswith("StrictDataclass") for name in names):
        return True
    return any(words in str(error).lower() for words in _REMEDIES)


def _usage(error: Any) -> str:
    """One line; or the help, where a command got no arguments."""
    message = error.format_message()
    if message.lstrip().startswith("Usage:"):
        return message
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    return f"r2d2: {printable(one_line(message)).rstrip('.')}" + (f" (see {command} --help)" if command else "")


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _leave_stdout() -> None:
    """The reader of stdout has gone (`| head`): what Python still flushes at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["run"]

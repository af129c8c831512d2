"""What libraries raise at a folder, in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError

_LONGEST_REASON = 400


@contextmanager
def configuration_errors(what: str) -> Iterator[None]:
    """Within it, sizes that do not go together are one line that begins with `what`; transformers raises a plain
    `Exception` of many lines.

    Raises:
        LoadingError: says which.
    """
    try:
        yield
    except StrictDataclassError as error:
        raise LoadingError(f"{what}: {first_line(error)}") from error


class LoadingError(ValueError):
    """A folder or file that cannot be loaded; one line says which and why."""


def first_line(error: BaseException) -> str:
    """The message without what follows its first sentence's line, and without advice to run a pickle's code."""
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    text = str(error).strip()
    if "weights_only" in text or "Weights only load failed" in text:  # torch goes on to advise how to load it still
        reason = re.search(r"WeightsUnpickler error: ([^.\n]+)", text)
        if reason is None or "global" in reason[1].lower():
            return "it holds a pickle with more than tensors and plain values, which could run code and is not loaded"
        return f"it holds no tensors ({reason[1]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    found = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if len(found) > _LONGEST_REASON:
        found = f"{found[:_LONGEST_REASON]}…"
    return f"{type(error).__name__}: {found}" if isinstance(error, (KeyError, TypeError, AttributeError)) else found


__all__ = ["LoadingError", "configuration_errors", "first_line"]

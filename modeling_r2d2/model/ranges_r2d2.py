"""Numbers and their ranges: one check for every setting, that NaN and infinity do not pass either.

This file travels to the Hub beside the weights, so it imports nothing but the standard library.
"""

import math
import numbers
from typing import Any


def require_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse a setting that is no finite number within its range.

    Args:
        name: of the setting, for the message.
        value: what it was given.
        least: lower bound, which it may reach.
        most: upper bound, which it may reach.
        above: lower bound, which it may not reach.
        below: upper bound, which it may not reach.
        whole: it counts something.

    Raises:
        ValueError: names the setting, its value and what it may be.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if (
        number
        and (isinstance(value, numbers.Integral) or (math.isfinite(value) and not whole))
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return
    range_ = in_words(least, above, most, below)
    if least is not None and most is not None:
        range_ += f" ({least:g}..{most:g})"
    kind = "a whole number" if whole else "a finite number"
    raise ValueError(f"{name} is {value!r}; it must be {kind}{' ' * bool(range_)}{range_}")


def in_words(
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> str:
    """Bounds as messages and help name them: "at least 0 and below 1"."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


def require_numbers(settings: Any, ranges: dict[str, dict[str, Any]], within: str = "") -> None:
    """`require_number` for fields of an object that are not None: name -> bounds.

    Args:
        within: what the fields belong to, put before their names.

    Raises:
        ValueError: names the first that is out of its range.
    """
    for name, bounds in ranges.items():
        value = getattr(settings, name)
        if value is not None:
            require_number(f"{within}{name}", value, **bounds)


#: Bounds that many settings have.
COUNT: dict[str, Any] = {"least": 1, "whole": True}
SEVERAL: dict[str, Any] = {"least": 2, "whole": True}
COUNT_OR_NONE: dict[str, Any] = {"least": 0, "whole": True}
SHARE: dict[str, Any] = {"least": 0, "most": 1}
#: A share after which something is left.
PART: dict[str, Any] = {"least": 0, "below": 1}
NOT_NEGATIVE: dict[str, Any] = {"least": 0}
POSITIVE: dict[str, Any] = {"above": 0}
#: What numpy and torch both take.
SEED: dict[str, Any] = {"least": 0, "below": 2**32, "whole": True}

__all__ = [
    "COUNT",
    "COUNT_OR_NONE",
    "NOT_NEGATIVE",
    "PART",
    "POSITIVE",
    "SEED",
    "SEVERAL",
    "SHARE",
    "in_words",
    "require_number",
    "require_numbers",
]

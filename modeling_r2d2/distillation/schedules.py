"""Settings that change while training, as functions of the global step alone: a resumed run needs nothing restored."""

import math
from dataclasses import dataclass
from typing import Literal

from ..model.ranges_r2d2 import COUNT_OR_NONE, SHARE, require_number


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` within `steps` optimizer steps, then `end`; step 0 is the first.

    linear: start + (end − start) · step / steps. cosine: end − (end − start) · (1 + cos(π · step / steps)) / 2.

    Raises:
        ValueError: a start or end that is not finite, steps below 0, another shape.
    """

    start: float
    end: float
    steps: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self):
        require_number("start", self.start)
        require_number("end", self.end)
        require_number("steps", self.steps, **COUNT_OR_NONE)
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"a schedule is 'linear' or 'cosine', not {self.shape!r}")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        done = step / self.steps
        if self.shape == "cosine":
            return self.end - (self.end - self.start) * (1 + math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule(value, value)


def require_momentum(value: float | Schedule) -> None:
    """A teacher's momentum, or where its schedule starts and ends, is a share.

    Raises:
        ValueError: it is not; with 1.5 the teacher would run away from the student.
    """
    for part in (value.start, value.end) if isinstance(value, Schedule) else (value,):
        require_number("momentum", part, **SHARE)

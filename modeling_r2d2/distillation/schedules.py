"""Settings that change while training, as functions of the global step (and of the length of the run) alone: a resumed
run needs nothing restored."""

import math
from dataclasses import dataclass
from typing import Literal

from ..model.ranges_r2d2 import COUNT_OR_NONE, SHARE, require_number


@dataclass(frozen=True)
class Schedule:
    """`start` until step `begin`, from there to `end` within `steps` optimizer steps, then `end`; step 0 is the first.

    With t = step − begin, linear: start + (end − start) · t / steps. cosine: end − (end − start) · (1 + cos(π · t /
    steps)) / 2.

    Raises:
        ValueError: a start or end that is not finite, numbers of steps below 0, another shape.
    """

    start: float
    end: float
    steps: int = 0
    shape: Literal["linear", "cosine"] = "linear"
    begin: int = 0

    def __post_init__(self):
        require_number("start", self.start)
        require_number("end", self.end)
        require_number("steps", self.steps, **COUNT_OR_NONE)
        require_number("begin", self.begin, **COUNT_OR_NONE)
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"a schedule is 'linear' or 'cosine', not {self.shape!r}")

    def __call__(self, step: int) -> float:
        made = step - self.begin
        if made >= self.steps:
            return self.end
        done = max(made, 0) / self.steps if self.steps else 0.0
        if self.shape == "cosine":
            return self.end - (self.end - self.start) * (1 + math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class RisingMomentum:
    """min(m, (1 + t) / (10 + t)) after t optimizer steps: of a young run the teacher holds about the last tenth.

    It is the rule of `tf.train.ExponentialMovingAverage` with `num_updates`; this project's choice, the paper says
    nothing of it. m = 0.995 is reached after 1,790 steps; a shorter run has a faster teacher throughout.

    Args:
        limit: m.

    Raises:
        ValueError: it is no share.
    """

    limit: float = 0.995

    def __post_init__(self):
        require_number("momentum", self.limit, **SHARE)

    def __call__(self, step: int) -> float:
        return min(self.limit, (1 + step) / (10 + step))


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

"""Settings that change while training, as functions of the global step alone: a resumed run needs nothing restored."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` within `steps` optimizer steps, then `end`; step 0 is the first.

    linear: start + (end − start) · step / steps. cosine: end − (end − start) · (1 + cos(π · step / steps)) / 2.
    """

    start: float
    end: float
    steps: int = 0
    shape: Literal["linear", "cosine"] = "linear"

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

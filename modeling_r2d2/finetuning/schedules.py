"""Learning rates of the authors' fine-tuning code, as pure functions of the step (their recorded values are tests)."""

import math
from collections.abc import Callable


def retrieval_rate(
    step: int, *, epochs: int, steps_per_epoch: int, base: float = 1e-5, warmup_steps: int = 500, start: float = 1e-6
) -> float:
    """Learning rate of optimiser step `step` (from 0) in the retrieval recipe.

    The first `warmup_steps` rise linearly from `start` towards `base`; the last value is kept to the end of that
    epoch. Every later epoch e is constant: ½ · base · (1 + cos(π · e / epochs)), which never reaches 0.
    """
    if step < warmup_steps:
        return start + (base - start) * step / warmup_steps
    epoch = step // steps_per_epoch
    if epoch * steps_per_epoch < warmup_steps:  # the warm-up ended in this epoch
        return start + (base - start) * (warmup_steps - 1) / warmup_steps
    return base / 2 * (1 + math.cos(math.pi * epoch / epochs))


def matching_rate(step: int, *, base: float = 3e-6, half_period: int = 3125, low: float = 0.05) -> float:
    """Learning rate of optimiser step `step` (from 0) in the matching recipe: a triangle between `low` × base and
    base, `half_period` steps up and as many down, over and over."""
    phase = step % (2 * half_period) / half_period
    return base * (low + (1 - low) * (1 - abs(phase - 1)))


def factor(rate: Callable[..., float], base: float, **options: float) -> Callable[[int], float]:
    """`rate` divided by `base`, for `torch.optim.lr_scheduler.LambdaLR`: groups with rates of their own keep their
    ratio to one another."""
    return lambda step: rate(step, base=base, **options) / base


__all__ = ["factor", "matching_rate", "retrieval_rate"]

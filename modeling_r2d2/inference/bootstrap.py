"""Confidence intervals by the percentile bootstrap: what a metric would be on other samples of the same size.

All resamples are computed at once. A resample is a row of counts, how often each unit was drawn; every metric here
is a function of weighted sums over the units, so the counts times a matrix of the units' own values gives it for all
resamples. Units are what is independent: a picture with its captions, a pair, a captioned picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Counts held at once: 32 MB of float64.
_CELLS = 4_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How to resample. The same seed draws the same units for every metric and model, so that the intervals of two
    models on one data set are comparable.

    Args:
        resamples: how many; 0 for no intervals.
        confidence: a share, such as 0.95.

    Raises:
        ValueError: a value out of its range.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise ValueError(f"resamples is {self.resamples}; it is a count, 0 for no intervals")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it is a share such as 0.95")

    def intervals(self, units: int, metric: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
        """Intervals of one or several metrics.

        Args:
            units: how many there are.
            metric: takes counts (R, units) and returns the metrics (R, M).

        Returns:
            (M, 2) lower and upper ends; None where `resamples` is 0.

        Raises:
            ValueError: no units.
        """
        if units < 1:
            raise ValueError("bootstrap of nothing: there are no units to draw")
        if self.resamples == 0:
            return None
        generator = np.random.default_rng(self.seed)
        values, left = [], self.resamples
        while left:
            rows = min(left, max(_CELLS // units, 1))
            drawn = generator.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
            counts = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
            values.append(metric(counts.astype(np.float64)))
            left -= rows
        tail = 50 * (1 - self.confidence)
        # a resample may leave a metric undefined (all pairs of one class)
        return np.nanpercentile(np.concatenate(values), [tail, 100 - tail], axis=0).T


def weighted_means(counts: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Means over the items of drawn units, as metrics for `Bootstrap.intervals`.

    Args:
        counts: (R, U).
        sums: (U, M) a unit's sum of each value.
        sizes: (U, M) over how many items.

    Returns:
        (R, M): counts·sums / counts·sizes.
    """
    return (counts @ sums) / (counts @ sizes)

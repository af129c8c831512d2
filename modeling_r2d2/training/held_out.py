"""Pairs that the training of a ranker leaves out, and its calibration on them at the end."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.calibrating import calibrate_model, gallery_of, measure
from ..processing.datasets.pair_sets import as_pairs
from ..processing.datasets.streaming import StreamingPairs

logger = logging.getLogger(__name__)

#: The share that is held out; at least and at most so many pairs.
_SHARE, _LEAST, _MOST = 0.05, 32, 500


def hold_out(pairs: Any, seed: int) -> tuple[Any, Any | None]:
    """Pairs to train with, and a twentieth of them, at least 32 and at most about 500, that are left out: all of some
    image ids. None, and all to train with, where that would be more than a fifth, or the set cannot be divided."""
    wanted = 0 if isinstance(pairs, StreamingPairs) else min(max(round(_SHARE * len(pairs)), _LEAST), _MOST)
    if not wanted or 5 * wanted > len(pairs) or not hasattr(pairs, "select"):
        return pairs, None
    _, numbers, counts = np.unique(as_pairs(pairs).image_ids(), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    left_out = np.isin(numbers, order[: int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1])
    if 5 * left_out.sum() > 2 * len(pairs):  # few ids, of many pairs
        return pairs, None
    return pairs.select(np.flatnonzero(~left_out)), pairs.select(np.flatnonzero(left_out))


def calibrate_on(folder: Path, pairs: Any, seed: int) -> None:
    """Fit a calibration as `r2d2 calibrate` does, store it with the model of a folder, and say what it is worth, or why
    there is none: of a ranker that has not learned anything yet.

    Args:
        pairs: that training has not seen; of more than about 500 so many are drawn.
    """
    if len(pairs) > _MOST and hasattr(pairs, "select"):
        pairs = pairs.select(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:_MOST]))
    try:
        fitted, found = calibrate_model(folder, gallery_of(pairs), seed=seed)
    except ValueError as error:
        logger.warning(f"the ranker is not calibrated: {error}")
        return
    fitted.save(folder)
    errors = {name: curve.error for name, curve in measure(found, fitted).items()}
    logger.info(
        f"calibrated on {len(pairs):,} pairs that training has not seen ({fitted.method} scaling): expected "
        f"calibration error {errors['before']:.4f} before, {errors['after']:.4f} after"
    )


__all__ = ["calibrate_on", "hold_out"]

"""Matching: how well a probability separates pairs that match from pairs that do not.

ROC-AUC is the probability that a matching pair scores above one that does not, a tie counting half; NaN scores are
refused. The accuracy is that of the best threshold on the very pairs judged, as CCMB reports it: an upper bound of
what a threshold chosen elsewhere gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from .bootstrap import Bootstrap


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, in percent.

    Args:
        scores: (N,), higher for a match.
        labels: (N,) of 0 and 1.

    Raises:
        ValueError: NaN, other labels, or pairs of one class alone.
    """
    scores, labels = _checked(scores, labels)
    return 100 * float(roc_auc_score(labels, scores))


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The threshold of highest accuracy on these pairs, and that accuracy in percent.

    A pair matches where its score is at least the threshold. Of equally good thresholds the highest; infinity means
    that calling nothing a match is best.

    Raises:
        ValueError: as `roc_auc`.
    """
    scores, labels = _checked(scores, labels)
    order = _Ranked(scores, labels)
    accuracy = order.accuracies(np.ones((1, len(scores))))[0]
    place = int(accuracy.argmax())
    return float(order.thresholds[place]), 100 * float(accuracy[place])


def matching_metrics(
    scores: ArrayLike, labels: ArrayLike, bootstrap: Bootstrap | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """ROC-AUC and best-threshold accuracy in percent, and the threshold.

    Args:
        scores: (N,) match probabilities.
        labels: (N,) of 0 and 1.
        bootstrap: None: no intervals.

    Returns:
        metrics `auc`, `accuracy`, `threshold` (absent where calling nothing a match is best); intervals of the first
        two.
    """
    scores, labels = _checked(scores, labels)
    threshold, accuracy = best_threshold(scores, labels)
    metrics = {"auc": roc_auc(scores, labels), "accuracy": accuracy}
    if np.isfinite(threshold):
        metrics["threshold"] = threshold
    ends = None
    if bootstrap is not None:
        order = _Ranked(scores, labels)
        ends = bootstrap.intervals(len(scores), lambda counts: 100 * order.auc_and_best_accuracy(counts))
    if ends is None:
        return metrics, {}
    names = ("auc", "accuracy")
    return metrics, {name: (float(low), float(high)) for name, (low, high) in zip(names, ends, strict=True)}


class _Ranked:
    """Pairs sorted by descending score and grouped by equal scores: AUC and accuracy of every resample at once."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        descending = scores[self.order]
        self.starts = np.flatnonzero(np.r_[True, descending[1:] != descending[:-1]])
        self.positive = labels[self.order].astype(np.float64)
        self.thresholds = np.r_[np.inf, descending[self.starts]]

    def _groups(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, G) weights of matching and of other pairs in every group of equal scores, best first."""
        drawn = counts[:, self.order]
        right = np.add.reduceat(drawn * self.positive, self.starts, axis=1)
        return right, np.add.reduceat(drawn, self.starts, axis=1) - right

    def accuracies(self, counts: np.ndarray) -> np.ndarray:
        """(R, G + 1): above every threshold called a match; the first threshold calls nothing one."""
        right, wrong = self._groups(counts)
        negatives = wrong.sum(axis=1, keepdims=True)
        gained = np.cumsum(right - wrong, axis=1)
        return np.concatenate([negatives, negatives + gained], axis=1) / counts.sum(axis=1, keepdims=True)

    def auc_and_best_accuracy(self, counts: np.ndarray) -> np.ndarray:
        """(R, 2)."""
        right, wrong = self._groups(counts)
        below = wrong.sum(axis=1, keepdims=True) - np.cumsum(wrong, axis=1)
        product = right.sum(axis=1) * wrong.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample of one class has no AUC
            auc = (right * (below + wrong / 2)).sum(axis=1) / product
        return np.stack([auc, self.accuracies(counts).max(axis=1)], axis=1)


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} are not two lists of one length")
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN, the first is pair "
            f"{int(np.isnan(scores).argmax())}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 1 (match) or 0 (no match)")
    labels = labels.astype(np.int64)
    if len(labels) == 0 or labels.min() == labels.max():
        raise ValueError("matching needs pairs that match and pairs that do not; these are all of one kind")
    return scores, labels

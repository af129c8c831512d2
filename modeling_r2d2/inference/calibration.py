"""A match probability that means what it says: scaled log-odds, fitted on pairs kept out of training.

The ranker was trained with one true pair to two drawn, hard ones, and its true pairs weigh double: its probability
orders pairs well, but it is no share of true pairs. With z = log p / (1 − p) of the model's probability p and the
cosine s over the model's temperature τ,

    temperature:  P(match) = σ(z / t)       Platt:  P(match) = σ(b z + c)       fused:  P(match) = σ(a s/τ + b z + c)

The best of them by the likelihood of pairs that a fit has not seen is taken. The third one weighs what pre-ranking says
too, as the fused score of `scoring` does, which leaves a = b = 1 to a ranker as its loss would have it: it needs wrong
pairs that were drawn uniformly, since drawing them in proportion to exp(s/τ) uses up what s/τ says, and a near 0 is
right for such pairs alone. All answer for the share of true pairs among those fitted; for another share π (the prior)
the logit moves by logit π − logit π_fitted.
Guo et al. 2017 (arXiv 1706.04599); Platt 1999; the third is this project's.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.ranges_r2d2 import COUNT, POSITIVE, require_number, require_numbers
from ..processing.files.writing import write_text
from .finite import require_finite, to_json
from .identity import identity_of_weights

logger = logging.getLogger(__name__)

Scaling = Literal["temperature", "platt", "fused"]
Method = Literal["best"] | Scaling

FILE = "calibration.json"
_EPSILON = 1e-7


@dataclass(frozen=True)
class Calibration:
    """σ(similarity_slope · s/τ + slope · logit(p) + intercept), moved from the fitted share of true pairs to `prior`.

    Args:
        method: "temperature" (intercept 0), "platt" or "fused", which alone weighs s/τ.
        true_share: of the pairs fitted.
        prior: share of true pairs where probabilities will be used; None: `true_share`.
        pairs: fitted on.
        held_out: mean log-likelihood of unseen pairs for "uncalibrated" and each method that could be fitted.
        ranker: digest of the ranker that it belongs to.
        similarity_slope: weight of s/τ; None where pre-ranking is not weighed.

    Raises:
        ValueError: a prior that is no share between 0 and 1; numbers that are not finite or out of their range.
    """

    method: Scaling
    slope: float
    intercept: float
    true_share: float
    pairs: int
    held_out: dict[str, float]
    prior: float | None = None
    ranker: str | None = None
    similarity_slope: float | None = None

    def __post_init__(self):
        bounds = {
            "slope": POSITIVE,
            "similarity_slope": POSITIVE,
            "intercept": {},
            "true_share": {"above": 0, "below": 1},
            "pairs": COUNT,
        }
        require_numbers(self, bounds)
        if (self.method == "fused") != (self.similarity_slope is not None):
            raise ValueError(
                f"similarity_slope is {self.similarity_slope} and the method {self.method!r}: 'fused' has one"
            )
        require_finite(self.held_out, "held_out")
        if self.prior is not None and not 0 < self.prior < 1:
            raise ValueError(f"the prior is {self.prior}; it is a share of true pairs between 0 and 1")

    def __call__(self, probability: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Calibrated probabilities for the model's, where nothing nearer to its logits is known.

        Args:
            probability: of any shape.
            similarity: s/τ of the same pairs, for a calibration that weighs it.

        Returns:
            of the same shape, float32.

        Raises:
            ValueError: this calibration needs the similarity.
        """
        return self.of_log_odds(_logits(torch.as_tensor(probability)), similarity)

    def of_log_odds(self, log_odds: Tensor, similarity: Tensor | None = None) -> Tensor:
        """The same for the log-odds of the model's probability, see `match_log_odds`."""
        shift = 0.0 if self.prior is None else _logit(self.prior) - _logit(self.true_share)
        logits = self.slope * log_odds.double() + self.intercept + shift
        if self.similarity_slope is not None:
            if similarity is None:
                raise ValueError("this calibration weighs pre-ranking too: give cosine / temperature of the pairs")
            logits = logits + self.similarity_slope * similarity.double()
        return logits.sigmoid().float()

    def with_prior(self, prior: float | None) -> "Calibration":
        """The same calibration for another share of true pairs."""
        return replace(self, prior=prior)

    def save(self, folder: str | PathLike) -> Path:
        """Write `calibration.json` into the model's folder, where the retriever finds it.

        Raises:
            FileNotFoundError, FileExistsError: as `refuse_foreign`.
        """
        self.refuse_foreign(folder)
        folder = Path(folder)
        write_text(folder / FILE, to_json(asdict(self), folder / FILE, indent=1) + "\n")
        return folder / FILE

    @classmethod
    def refuse_foreign(cls, folder: str | PathLike) -> None:
        """Raise unless a calibration may be stored in a folder.

        Raises:
            FileNotFoundError: there is no such folder.
            FileExistsError: its `calibration.json` is none of ours.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder: a calibration is stored with the model it belongs to")
        try:
            cls.load(folder)
        except FileNotFoundError:
            return
        except ValueError as error:
            raise FileExistsError(f"{folder / FILE} is in the way and no calibration: move it away") from error

    @classmethod
    def load(cls, folder: str | PathLike) -> "Calibration":
        """Read `calibration.json` from a model's folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is torn, or no calibration.
        """
        path = Path(folder) / FILE
        text = path.read_text(encoding="utf-8")
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is no calibration ({error}): move it away and run `r2d2 calibrate` again"
            ) from error

    @classmethod
    def of_model(cls, source: object, model: PreTrainedModel) -> "Calibration | None":
        """The calibration stored with a model, None where there is none; one that was fitted on another ranker (the
        model was trained further since) is left out with a warning."""
        folder = (
            Path(source) if isinstance(source, str | PathLike) else Path(getattr(model.config, "_name_or_path", ""))
        )
        if not (folder / FILE).is_file():
            return None
        found = cls.load(folder)
        if found.ranker is not None and found.ranker != identity_of_weights(model):
            logger.warning(
                "%s belongs to other weights of this model and is not used: run `r2d2 calibrate` again", folder / FILE
            )
            return None
        return found


def fit_calibration(
    probability: Tensor | Sequence[float],
    labels: Tensor | Sequence[int],
    groups: Sequence | None = None,
    prior: float | None = None,
    folds: int = 5,
    method: Method = "best",
) -> Calibration:
    """Fit on pairs that training has not seen, by their probabilities alone; see `fit_log_odds`.

    Args:
        probability: (P,) of the model.

    Raises:
        ValueError: values that are no probabilities; as `fit_log_odds`.
    """
    p = torch.as_tensor(probability, dtype=torch.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie within [0, 1]")
    return fit_log_odds(_logits(p), labels, None, groups, prior, folds, method)


def fit_log_odds(
    log_odds: Tensor | Sequence[float],
    labels: Tensor | Sequence[int],
    similarity: Tensor | Sequence[float] | None = None,
    groups: Sequence | None = None,
    prior: float | None = None,
    folds: int = 5,
    method: Method = "best",
) -> Calibration:
    """Fit on pairs that training has not seen.

    Args:
        log_odds: (P,) of the model's match probability.
        labels: (P,), 1 = true pair.
        similarity: (P,) s/τ, for the method "fused", where wrong pairs were drawn uniformly; None: it is not fitted.
        groups: (P,), pairs that belong together (of one picture, say) are held out together; default: each on its own.
        prior: see `Calibration`.
        folds: of the cross-validation that chooses the method.
        method: or the one to take. "best" leaves "fused" out where it would weigh either evidence against itself.

    Raises:
        ValueError: pairs of one kind only, or fewer than `folds` of either; values that are not finite; "fused" without
            similarity; a fit that turns an order round.
    """
    z = _column(log_odds)
    y = np.asarray(torch.as_tensor(labels)).astype(np.float64)
    s = None if similarity is None else _column(similarity)
    if y.ndim != 1 or not len(y) == len(z) == len(z if s is None else s):
        raise ValueError(f"evidence of {len(z)} pairs and labels {y.shape} must be lists of the same length")
    evidence: dict[Scaling, np.ndarray] = {"temperature": z, "platt": z}
    if s is not None:
        evidence["fused"] = np.concatenate([z, s], axis=1)
    if not np.isfinite(evidence.get("fused", z)).all():
        raise ValueError("the evidence to calibrate must be finite")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if min(y.sum(), len(y) - y.sum()) < folds:
        raise ValueError(
            f"{int(y.sum())} true and {int(len(y) - y.sum())} false pairs: at least {folds} of each are needed"
        )
    if method not in ("best", *evidence):
        raise ValueError(f"method is {method!r}; use 'best' or one of {', '.join(evidence)}")
    parts = _folds(
        np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1], folds
    )
    held_out = {"uncalibrated": _likelihood(z[:, 0], y)}
    fits: dict[Scaling, tuple[np.ndarray, float]] = {}
    for name, columns in evidence.items():
        total = 0.0
        for part in parts:
            slopes, intercept = _fit(columns[~part], y[~part], name)
            total += _likelihood(columns[part] @ slopes + intercept, y[part]) * part.sum()
        held_out[name] = float(total / len(y))
        fits[name] = _fit(columns, y, name)
    able = [name for name, (slopes, _) in fits.items() if name != "fused" or (slopes > 0).all()]
    chosen = max(able, key=held_out.__getitem__) if method == "best" else method
    slopes, intercept = fits[chosen]
    if (slopes <= 0).any():
        shown = ", ".join(f"{slope:.3g}" for slope in slopes)
        raise ValueError(f"the fit turns the order round (slope {shown}): on these pairs the evidence says nothing")
    weighed = float(slopes[1]) if chosen == "fused" else None
    share = float(y.mean())
    return Calibration(chosen, float(slopes[0]), intercept, share, len(y), held_out, prior, similarity_slope=weighed)


def _fit(evidence: np.ndarray, y: np.ndarray, method: str) -> tuple[np.ndarray, float]:
    """Slopes of (P, K) and intercept of most likelihood. Platt's targets ((N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2)), which
    keep them finite where the classes can be told apart entirely, are shares of every pair that count as true."""
    from sklearn.linear_model import LogisticRegression  # takes a second, and a search only applies what was fitted

    true = y.sum()
    targets = np.where(y == 1, (true + 1) / (true + 2), 1 / (len(y) - true + 2))
    fit = LogisticRegression(
        C=np.inf, fit_intercept=method != "temperature", solver="newton-cholesky", tol=1e-10, max_iter=200
    ).fit(np.r_[evidence, evidence], np.repeat([1, 0], len(y)), sample_weight=np.r_[targets, 1 - targets])
    return fit.coef_[0].astype(float), float(np.ravel(fit.intercept_)[0])


def _column(values: Tensor | Sequence[float]) -> np.ndarray:
    """(P, 1) float64."""
    return np.asarray(torch.as_tensor(values, dtype=torch.float64)).reshape(-1, 1)


def _folds(groups: np.ndarray, folds: int) -> list[np.ndarray]:
    """Masks of the held-out parts: groups dealt out in an order drawn with a fixed seed."""
    number = int(groups.max()) + 1
    fold_of = np.random.default_rng(0).permutation(number) % folds
    return [fold_of[groups] == fold for fold in range(folds) if (fold_of[groups] == fold).any()]


def _logits(probability: Tensor) -> Tensor:
    """Log-odds in float64, finite where a probability has been rounded to 0 or 1."""
    return torch.logit(probability.double().clamp(_EPSILON, 1 - _EPSILON))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _likelihood(z: np.ndarray, y: np.ndarray) -> float:
    return -float((np.logaddexp(0, z) - y * z).sum()) / len(y)


# -- how good probabilities are ---------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """Bins of equally many pairs, by their probability: mean probability, share of true pairs, count; and the expected
    calibration error, the mean distance of the first two, weighted by the counts."""

    probability: list[float]
    true_share: list[float]
    counts: list[int]
    error: float


def reliability(probability: Tensor | Sequence[float], labels: Tensor | Sequence[int], bins: int = 15) -> Reliability:
    """How far probabilities are from the shares of true pairs: (P,), (P,) in 0, 1.

    Raises:
        ValueError: no pairs, or lists of different lengths.
    """
    p = np.asarray(torch.as_tensor(probability, dtype=torch.float64))
    y = np.asarray(torch.as_tensor(labels)).astype(np.float64)
    if p.shape != y.shape or not len(p):
        raise ValueError(f"{len(p)} probabilities and {len(y)} labels")
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(p))) if len(part)]
    means, shares, counts = ([f(part) for part in parts] for f in (lambda i: p[i].mean(), lambda i: y[i].mean(), len))
    error = sum(abs(m - s) * c for m, s, c in zip(means, shares, counts, strict=True)) / len(p)
    return Reliability([float(m) for m in means], [float(s) for s in shares], counts, float(error))


@dataclass(frozen=True)
class Threshold:
    """Accept pairs of at least `probability`: what that gives on the pairs measured."""

    probability: float
    precision: float
    recall: float


def threshold_for(
    probability: Tensor | Sequence[float],
    labels: Tensor | Sequence[int],
    precision: float | None = None,
    recall: float | None = None,
) -> Threshold:
    """The threshold of most recall with at least a wanted precision, or of most precision with a wanted recall.

    Raises:
        ValueError: neither or both wanted, or no share; no true pair, or none gives the precision: says the best.
    """
    if (precision is None) == (recall is None):
        raise ValueError("give the wanted precision or the wanted recall")
    wanted = {"precision": precision} if recall is None else {"recall": recall}
    for name, value in wanted.items():
        require_number(name, value, above=0, most=1)
    p = np.asarray(torch.as_tensor(probability, dtype=torch.float64))
    y = np.asarray(torch.as_tensor(labels)).astype(np.float64)
    if not y.sum():
        raise ValueError("there is no true pair among these")
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    last = np.append(np.diff(p[order]) != 0, True)  # a threshold takes all pairs of one probability
    places = np.flatnonzero(last)
    precisions, recalls = hits[places] / (places + 1), hits[places] / y.sum()
    if precision is not None:
        good = np.flatnonzero(precisions >= precision)
        if not len(good):
            raise ValueError(f"no threshold has a precision of {precision:.3f}; the best is {precisions.max():.3f}")
        best = good[np.lexsort((precisions[good], recalls[good]))[-1]]
    else:
        good = np.flatnonzero(recalls >= recall)
        best = good[np.lexsort((recalls[good], precisions[good]))[-1]]
    return Threshold(float(p[order][places[best]]), float(precisions[best]), float(recalls[best]))

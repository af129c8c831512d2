"""The score of two-stage retrieval: what pre-ranking and the ranker say of a pair, in one number.

With the cosine s, the model's temperature τ and the match probability p of a candidate:

    fused:      a · s/τ + b · log (p / (1 − p))     this project's, a = b = 1 unless a calibration has fitted them
    published:  s + p                               as the authors evaluate (arXiv 2205.03860 and its published code)

Why a = b = 1 belongs to a ranker that is trained as here: its wrong pairs are drawn by pre-ranking. Beside each true
pair of a query stands the candidate j with probability q(j) ∝ m(j) exp(s_j/τ), where m(j) is how often j occurs at all
(FGR, `draw_hard_negatives`). Its cross-entropy over true pairs, of weight w₁, and n times as many drawn ones, of weight
w₀, is least where

    p_j / (1 − p_j) = w₁ P(j | query) / (n w₀ q(j))

so the ranker's odds are relative to pre-ranking: what the draw told already, they leave out. Solved for the posterior

    P(j | query) ∝ q(j) p_j / (1 − p_j) ∝ m(j) exp(s_j/τ + log (p_j / (1 − p_j)))

which among candidates that occur equally often is the softmax of the fused score; n and the weights only shift it. FGR
draws wrong texts for each picture, too: then 1/Z of the query, Z its sum of m exp(s/τ), becomes the mean of 1/Z of the
query and of the candidate. Where pre-ranking's own loss is least both are the same constant, and the rule holds as it
stands. The published rule adds a probability to a cosine, and is no log-odds of anything.

Scores of both rules are without bounds that could be relied on, so what the ranker has not seen is set below what it
has seen by a constant of each query: `in_tiers`.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..model.modeling_r2d2 import R2D2Model
from .calibration import Calibration

ScoreRule = Literal["fused", "published"]
SCORE_RULES: tuple[ScoreRule, ...] = get_args(ScoreRule)
#: How far the best of a tier lies at least below the least of the one before.
_STEP = 1.0


@dataclass(frozen=True)
class TwoStageScore:
    """How both stages' evidence becomes one score, see above.

    Args:
        rule: "fused" or "published".
        temperature: τ of the model.
        similarity_weight: a.
        match_weight: b.

    Raises:
        ValueError: an unknown rule.
    """

    rule: ScoreRule
    temperature: float
    similarity_weight: float = 1.0
    match_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in SCORE_RULES:
            raise ValueError(f"score is {self.rule!r}; use one of {', '.join(SCORE_RULES)}")

    @classmethod
    def of(
        cls, model: R2D2Model, rule: ScoreRule | None = None, calibration: Calibration | None = None
    ) -> "TwoStageScore":
        """A model's own rule, or the one named, at the temperature that the model has now; with the weights of both
        stages' evidence where a calibration has fitted them, so that "fused" orders as its probabilities do."""
        found = cls(rule or model.config.two_stage_score, model.bounded_temperature().item())
        if found.rule == "published" or calibration is None or calibration.similarity_slope is None:
            return found
        return replace(found, similarity_weight=calibration.similarity_slope, match_weight=calibration.slope)

    def __call__(self, cosine: Tensor, log_odds: Tensor) -> Tensor:
        """Scores of candidates.

        Args:
            cosine: (…).
            log_odds: (…) of `match_log_odds`.
        """
        if self.rule == "published":
            return cosine + log_odds.sigmoid()
        return self.pre_ranking(cosine) + self.match_weight * log_odds

    def pre_ranking(self, cosine: Tensor) -> Tensor:
        """The part of the score that needs no ranker, (…)."""
        return cosine if self.rule == "published" else self.similarity_weight / self.temperature * cosine


def in_tiers(scores: Tensor, tiers: Tensor) -> Tensor:
    """Scores of which a lower tier never reaches a higher one, and whose order within a tier stays.

    All of a query's tier are lowered by one constant, as far as it needs for its best to lie 1 below the least of the
    tiers before.

    Args:
        scores: (…, N) of queries.
        tiers: (…, N) int64, 0 the highest: candidates; then those that a cascade's first encoder alone has seen; then
            whatever is no candidate.
    """
    for tier in range(1, int(tiers.max()) + 1):
        floor = scores.masked_fill(tiers >= tier, torch.inf).amin(dim=-1, keepdim=True)
        best = scores.masked_fill(tiers != tier, -torch.inf).amax(dim=-1, keepdim=True)
        scores = torch.where(tiers == tier, scores + (floor - _STEP - best).clamp(max=0), scores)
    return scores


__all__ = ["SCORE_RULES", "ScoreRule", "TwoStageScore", "in_tiers"]

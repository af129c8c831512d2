"""Recall of retrieval both ways, by pre-ranking and by both stages, of a gallery that a model encodes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import torch
from PIL import Image
from torch import Tensor

from ..inference.encoding import (
    Direction,
    EncodedImages,
    EncodedTexts,
    candidate_pairs,
    encode_images,
    encode_texts,
    is_token_wise,
    pre_ranking_scores,
)
from ..inference.ranker import ranker_of
from ..inference.recall import recall_both_ways
from ..inference.scoring import SCORE_RULES, ScoreRule, TwoStageScore, in_tiers
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker
from ..processing.datasets.gallery import ImageId, TextId, positive_pairs


@dataclass(frozen=True)
class RetrievalResult:
    """What `evaluate_retrieval` found.

    Args:
        images: their number.
        texts: their number.
        candidates: k of the second stage, None where there was none.
        pre_ranking: recalls in percent, keys as in `recall_both_ways`.
        two_stage: the same of both stages, by the rule `score`.
        two_stage_by_score: the same by each rule of `TwoStageScore`.
        score: the rule that was asked for, or the model's own; None without a second stage.
        cosine: (T, I), of a token-wise model s(T → I).
        text_to_image_scores: (T, I) of both stages together, by `score`.
        image_to_text_scores: (I, T) of both stages together, by `score`; of a token-wise model s(I → T), no transpose
            of `cosine`.
    """

    images: int
    texts: int
    candidates: int | None
    pre_ranking: dict[str, float]
    two_stage: dict[str, float] | None
    cosine: Tensor = field(repr=False)
    two_stage_by_score: dict[ScoreRule, dict[str, float]] | None = None
    score: ScoreRule | None = None
    text_to_image_scores: Tensor | None = field(default=None, repr=False)
    image_to_text_scores: Tensor | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """Everything but the score matrices: plain numbers for JSON."""
        return {
            "images": self.images,
            "texts": self.texts,
            "candidates": self.candidates,
            "pre_ranking": dict(self.pre_ranking),
            "score": self.score,
            "two_stage": self.two_stage,
            "two_stage_by_score": self.two_stage_by_score,
        }


def evaluate_retrieval(
    model: R2D2Model,
    processor: R2D2Processor,
    images: Sequence[Image.Image | str | PathLike],
    texts: Sequence[str],
    image_ids: Sequence[ImageId] | None = None,
    text_ids: Sequence[TextId] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    candidates: int | None = None,
    batch_size: int = 32,
    score: ScoreRule | TwoStageScore | None = None,
) -> RetrievalResult:
    """Recall@K of a gallery of pictures and texts, both ways.

    Args:
        images: the gallery; PIL pictures or paths.
        texts: the gallery; PIL pictures or paths.
        image_ids: see `positive_pairs`; without them text i belongs to picture i.
        text_ids: see `positive_pairs`.
        ks: cut-offs.
        candidates: k of the second stage; None: pre-ranking alone.
        batch_size: pictures at a time (texts: eight times as many).
        score: how both stages' evidence is combined; None: as the model's configuration says. Recalls by the other rule
            are given too, of the same ranking.

    Raises:
        ValueError: an empty gallery, ids that do not fit it, a query without any right item, candidates asked of a
            model without a ranker, an unknown score.
    """
    positives = _positives(images, texts, image_ids, text_ids)
    scores = score_both_ways(model, processor, images, texts, candidates, batch_size, score)
    result = RetrievalResult(
        images=len(images),
        texts=len(texts),
        candidates=candidates,
        pre_ranking=recall_both_ways(scores.cosine, scores.image_to_text, positives, ks),
        two_stage=None,
        cosine=scores.cosine,
        image_to_text_scores=scores.image_to_text if is_token_wise(model) else None,
    )
    if scores.score is None:
        return result
    own = scores.score.rule
    matrices = {rule: scores.two_stage(rule) for rule in SCORE_RULES}
    by_score = {rule: recall_both_ways(*both, positives, ks) for rule, both in matrices.items()}
    to_image, to_text = matrices[own]
    return replace(
        result,
        two_stage=by_score[own],
        two_stage_by_score=by_score,
        score=own,
        text_to_image_scores=to_image,
        image_to_text_scores=to_text,
    )


@dataclass(frozen=True)
class GalleryScores:
    """Scores of all pictures and texts of a gallery, without a word on which belong together.

    Args:
        cosine: (T, I) of `pre_ranking_scores`.
        image_to_text: (I, T) of `pre_ranking_scores`.
        score: of the second stage; None where there was none.
        log_odds: (T, I) of the match probabilities, NaN where the ranker was not asked.
        candidates: (T, I) boolean, the pairs that were ranked for each way.
    """

    cosine: Tensor
    image_to_text: Tensor
    score: TwoStageScore | None = None
    log_odds: Tensor | None = None
    candidates: dict[Direction, Tensor] = field(default_factory=dict)

    def two_stage(self, rule: ScoreRule | None = None) -> tuple[Tensor, Tensor]:
        """Scores of both stages, (T, I) and (I, T), by `score` or by another rule at the same temperature.

        Raises:
            ValueError: there was no second stage.
        """
        score, log_odds = self.score, self.log_odds
        if score is None or log_odds is None:
            raise ValueError("nothing was ranked: give candidates")
        if rule is not None and rule != score.rule:
            score = TwoStageScore(rule, score.temperature)
        to_image, to_text = (
            _combine(score, self.cosine, log_odds, self.candidates[way], way)
            for way in ("text_to_image", "image_to_text")
        )
        return to_image, to_text


def score_both_ways(
    model: R2D2Model,
    processor: R2D2Processor,
    images: Sequence[Image.Image | str | PathLike],
    texts: Sequence[str],
    candidates: int | None = None,
    batch_size: int = 32,
    score: ScoreRule | TwoStageScore | None = None,
) -> GalleryScores:
    """Scores of a gallery; arguments as for `evaluate_retrieval`.

    Raises:
        ValueError: an empty gallery, candidates asked of a model without a ranker, an unknown score.
    """
    if keep_states := candidates is not None:
        require_ranker(model.config, "the second stage", "leave candidates at None")
        score = score if isinstance(score, TwoStageScore) else TwoStageScore.of(model, score)
    encoded_images = encode_images(model, processor, images, batch_size, keep_states)
    encoded_texts = encode_texts(model, processor, texts, 8 * batch_size, keep_states)
    cosine, image_to_text = pre_ranking_scores(model, encoded_texts, encoded_images)
    if candidates is None:
        return GalleryScores(cosine, image_to_text)
    assert isinstance(score, TwoStageScore)
    ways: tuple[Direction, ...] = ("text_to_image", "image_to_text")
    wanted = {way: candidate_pairs(cosine, candidates, way) for way in ways}
    # a pair scores the same in both directions: rank it once
    union = wanted["text_to_image"] | wanted["image_to_text"]
    log_odds = _match_log_odds(model, encoded_texts, encoded_images, union)
    return GalleryScores(cosine, image_to_text, score, log_odds, wanted)


def _positives(images: Sequence, texts: Sequence, image_ids: Sequence | None, text_ids: Sequence | None) -> Tensor:
    if image_ids is None or text_ids is None:
        if image_ids is not text_ids:
            raise ValueError("image_ids and text_ids come together")
        if len(images) != len(texts):
            raise ValueError(
                f"{len(images)} images and {len(texts)} texts: give image_ids and text_ids to say which belong together"
            )
        return torch.eye(len(images), dtype=torch.bool)
    for name, ids, items in (("image_ids", image_ids, images), ("text_ids", text_ids, texts)):
        if len(ids) != len(items):
            raise ValueError(f"{len(ids)} {name} for {len(items)} items")
    return positive_pairs(image_ids, text_ids)


def two_stage_scores(
    model: R2D2Model,
    texts: EncodedTexts,
    images: EncodedImages,
    candidates: int,
    direction: Direction = "text_to_image",
    score: ScoreRule | TwoStageScore | None = None,
) -> Tensor:
    """Scores of pre-ranking + ranking for the candidates of every query.

    Whatever is not a candidate lies below all candidates of its query, in the order of its cosine: `in_tiers`.

    Args:
        candidates: k, how many of the gallery go into the second stage (the authors: 128 on Flickr30k-CNA, 64 on
            ICR and IQR); at least the size of the gallery means everything.
        score: "fused" (s/τ + log-odds of a match) or "published" (cosine + match probability), or one with weights of
            its own; None: as the model's configuration says.

    Returns:
        (T, I) for `text_to_image`, (I, T) for `image_to_text`; float32.

    Raises:
        ValueError: an unknown score, no candidates, states that were not kept.
    """
    score = score if isinstance(score, TwoStageScore) else TwoStageScore.of(model, score)
    cosine, _ = pre_ranking_scores(model, texts, images)
    pairs = candidate_pairs(cosine, candidates, direction)
    return _combine(score, cosine, _match_log_odds(model, texts, images, pairs), pairs, direction)


def _match_log_odds(model: R2D2Model, texts: EncodedTexts, images: EncodedImages, pairs: Tensor) -> Tensor:
    """(T, I) float32 where `pairs` (T, I) asks for it, NaN elsewhere."""
    log_odds = torch.full(pairs.shape, torch.nan)
    log_odds[pairs] = ranker_of(model).match_log_odds(texts, images, *pairs.nonzero(as_tuple=True))
    return log_odds


def _combine(score: TwoStageScore, cosine: Tensor, log_odds: Tensor, pairs: Tensor, direction: Direction) -> Tensor:
    scores = torch.where(pairs, score(cosine, log_odds.to(cosine)), score.pre_ranking(cosine))
    if direction == "image_to_text":
        scores, pairs = scores.t(), pairs.t()
    return in_tiers(scores, (~pairs).long())

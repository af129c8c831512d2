"""Recall of retrieval both ways, by pre-ranking and by both stages, of a gallery that a model encodes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..inference.encoding import (
    NOT_A_CANDIDATE,
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
        two_stage: the same of both stages.
        cosine: (T, I), of a token-wise model s(T → I).
        text_to_image_scores: (T, I) of both stages together.
        image_to_text_scores: (I, T) of both stages together; of a token-wise model s(I → T), no transpose of `cosine`.
    """

    images: int
    texts: int
    candidates: int | None
    pre_ranking: dict[str, float]
    two_stage: dict[str, float] | None
    cosine: Tensor = field(repr=False)
    text_to_image_scores: Tensor | None = field(default=None, repr=False)
    image_to_text_scores: Tensor | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """Everything but the score matrices: plain numbers for JSON."""
        return {
            "images": self.images,
            "texts": self.texts,
            "candidates": self.candidates,
            "pre_ranking": dict(self.pre_ranking),
            "two_stage": None if self.two_stage is None else dict(self.two_stage),
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

    Raises:
        ValueError: an empty gallery, ids that do not fit it, a query without any right item, candidates asked of a
            model without a ranker.
    """
    positives = _positives(images, texts, image_ids, text_ids)
    cosine, image_to_text, scores = score_both_ways(model, processor, images, texts, candidates, batch_size)
    result = RetrievalResult(
        images=len(images),
        texts=len(texts),
        candidates=candidates,
        pre_ranking=recall_both_ways(cosine, image_to_text, positives, ks),
        two_stage=None,
        cosine=cosine,
        image_to_text_scores=image_to_text if is_token_wise(model) else None,
    )
    if scores is None:
        return result
    two_stage = recall_both_ways(scores["text_to_image"], scores["image_to_text"], positives, ks)
    matrices: dict[str, Any] = {f"{way}_scores": matrix for way, matrix in scores.items()}
    return replace(result, two_stage=two_stage, **matrices)


def score_gallery(
    model: R2D2Model,
    processor: R2D2Processor,
    images: Sequence[Image.Image | str | PathLike],
    texts: Sequence[str],
    candidates: int | None = None,
    batch_size: int = 32,
) -> tuple[Tensor, dict[Direction, Tensor] | None]:
    """Scores of all pictures and texts, without a word on which belong together; arguments as for `evaluate_retrieval`.

    Returns:
        the cosines (T, I); and the scores of both stages, (T, I) for `text_to_image`, (I, T) for `image_to_text`,
        or None without candidates.

    Raises:
        ValueError: an empty gallery, candidates asked of a model without a ranker, a token-wise model.
    """
    if is_token_wise(model):
        raise ValueError(
            "this model compares token by token, so its scores of texts over pictures are not those of pictures over "
            "texts: call score_both_ways, or evaluate_retrieval"
        )
    cosine, _, scores = score_both_ways(model, processor, images, texts, candidates, batch_size)
    return cosine, scores


def score_both_ways(
    model: R2D2Model,
    processor: R2D2Processor,
    images: Sequence[Image.Image | str | PathLike],
    texts: Sequence[str],
    candidates: int | None = None,
    batch_size: int = 32,
) -> tuple[Tensor, Tensor, dict[Direction, Tensor] | None]:
    """As `score_gallery`, for models that compare token by token too.

    Returns:
        the scores of `pre_ranking_scores`, (T, I) and (I, T); and those of both stages, or None without candidates.

    Raises:
        ValueError: an empty gallery, candidates asked of a model without a ranker.
    """
    if keep_states := candidates is not None:
        require_ranker(model.config, "the second stage", "leave candidates at None")
    encoded_images = encode_images(model, processor, images, batch_size, keep_states)
    encoded_texts = encode_texts(model, processor, texts, 8 * batch_size, keep_states)
    cosine, image_to_text = pre_ranking_scores(model, encoded_texts, encoded_images)
    if candidates is None:
        return cosine, image_to_text, None
    ways: tuple[Direction, ...] = ("text_to_image", "image_to_text")
    wanted = {way: candidate_pairs(cosine, candidates, way) for way in ways}
    # a pair scores the same in both directions: rank it once
    union = wanted["text_to_image"] | wanted["image_to_text"]
    probability = _match_probabilities(model, encoded_texts, encoded_images, union)
    return cosine, image_to_text, {way: _combine(cosine, probability, pairs, way) for way, pairs in wanted.items()}


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
) -> Tensor:
    """Scores of pre-ranking + ranking: match probability + cosine for the candidates of every query.

    Whatever is not a candidate gets cosine + `NOT_A_CANDIDATE`: below all candidates, in the order of its cosine.

    Args:
        candidates: k, how many of the gallery go into the second stage (the authors: 128 on Flickr30k-CNA, 64 on
            ICR and IQR); at least the size of the gallery means everything.

    Returns:
        (T, I) for `text_to_image`, (I, T) for `image_to_text`; float32.
    """
    cosine, _ = pre_ranking_scores(model, texts, images)
    pairs = candidate_pairs(cosine, candidates, direction)
    return _combine(cosine, _match_probabilities(model, texts, images, pairs), pairs, direction)


def _match_probabilities(model: R2D2Model, texts: EncodedTexts, images: EncodedImages, pairs: Tensor) -> Tensor:
    """(T, I) float32 where `pairs` (T, I) asks for it, NaN elsewhere."""
    probability = torch.full(pairs.shape, torch.nan)
    probability[pairs] = ranker_of(model).match_probabilities(texts, images, *pairs.nonzero(as_tuple=True))
    return probability


def _combine(cosine: Tensor, probability: Tensor, pairs: Tensor, direction: Direction) -> Tensor:
    scores = cosine + torch.where(pairs, probability.to(cosine), NOT_A_CANDIDATE)
    return scores if direction == "text_to_image" else scores.t()

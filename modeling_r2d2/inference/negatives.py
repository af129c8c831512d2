"""Wrong pairs of a gallery: drawn uniformly, or as FGR draws its negatives, those that a model finds hard."""

import torch
from torch import Tensor

from ..model.losses_r2d2 import negative_logits
from .encoding import EncodedImages, EncodedTexts, TwoTowers, evaluating, pre_ranking_scores

#: Share of the likeliest; what underflows stays possible, where more are wanted than are likely at all.
_LEAST = 1e-12


def similarity_logits(model: TwoTowers, texts: EncodedTexts, images: EncodedImages) -> Tensor:
    """s(T → I) / τ of all texts and pictures, (T, I) on the CPU: what FGR's draw goes by."""
    with evaluating(model):
        return pre_ranking_scores(model, texts, images)[0] / model.bounded_temperature().cpu()


def draw_negatives(logits: Tensor, positives: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Different negatives for every row, each with probability softmax(logits) over those not yet drawn.

    Args:
        logits: (R, C); equal ones draw uniformly. Numbers are drawn in their precision.
        positives: (R, C) boolean, what is no negative.
        count: for every row, at most as many negatives as it has.
        generator: of the draw.

    Returns:
        (R, count) columns.
    """
    chances = negative_logits(logits, positives).softmax(dim=1).clamp(min=_LEAST).masked_fill(positives, 0)
    return torch.multinomial(chances, count, generator=generator)


__all__ = ["draw_negatives", "similarity_logits"]

"""Pairs to calibrate on: every true pair of a gallery, and wrong ones drawn uniformly or as FGR draws its negatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..model.losses_r2d2 import hard_negative_weights
from ..model.modeling_r2d2 import R2D2Model
from ..processing.datasets.gallery import positive_pairs
from .encoding import encode_images, encode_texts
from .ranker import FastRanker, RankedTexts

Negatives = Literal["uniform", "hard"]
#: Wrong pairs for each true one.
PER_POSITIVE = {"uniform": 32, "hard": 4}


@dataclass(frozen=True)
class PairList:
    """P pairs: text_index, image_index, labels (P,), 1 = true. The same list serves every model that is compared."""

    text_index: Tensor
    image_index: Tensor
    labels: Tensor

    @property
    def groups(self) -> list[int]:
        """The text of each pair: pairs of one text are held out together."""
        return self.text_index.tolist()


def draw_pairs(
    image_ids: Sequence,
    text_ids: Sequence,
    negatives: Negatives = "uniform",
    per_positive: int | None = None,
    seed: int = 0,
    weights: Tensor | None = None,
) -> PairList:
    """All true pairs of a gallery, and for each of them `per_positive` wrong pictures for its text; by default 32
    uniform ones, which are cheap and show how improbable wrong pairs are, or 4 hard ones. `Calibration.prior` makes up
    for the share of true pairs that this gives.

    Args:
        image_ids, text_ids: see `evaluation.positive_pairs`.
        weights: (T, I) for hard negatives: chances of being drawn, `hard_negative_weights` of the model that the list
            is made with. Without replacement, as far as there are enough wrong pictures.

    Raises:
        ValueError: no true pair, no wrong one, or hard negatives without weights.
    """
    positives = positive_pairs(image_ids, text_ids)
    if not positives.any() or positives.all():
        raise ValueError("calibration needs true and wrong pairs: the gallery has pairs of one kind only")
    if negatives == "hard":
        if weights is None:
            raise ValueError("hard negatives are drawn with weights: give those of `hard_negative_weights`")
        chances = weights.double().cpu().masked_fill(positives, 0)
    elif negatives == "uniform":
        chances = (~positives).double()
    else:
        raise ValueError(f"negatives is {negatives!r}; use 'uniform' or 'hard'")
    chances = chances.clamp(min=1e-12).masked_fill(positives, 0)
    text_index, image_index = positives.nonzero(as_tuple=True)
    count = min(per_positive or PER_POSITIVE[negatives], int((chances > 0).sum(dim=1).min()))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(chances[text_index], count, generator=generator)
    return PairList(
        torch.cat([text_index, text_index.repeat_interleave(count)]),
        torch.cat([image_index, drawn.flatten()]),
        torch.cat([torch.ones(len(text_index)), torch.zeros(drawn.numel())]).long(),
    )


@dataclass
class Gallery:
    """An encoded gallery: its ranker states and cosines (T, I), for probabilities of any pairs of it."""

    model: R2D2Model
    texts: RankedTexts
    states: Tensor
    cosine: Tensor

    @classmethod
    def encode(cls, model: R2D2Model, processor, images: Sequence, texts: Sequence[str]) -> "Gallery":
        """Encode pictures (PIL or paths) and texts.

        Raises:
            ValueError: a model without a ranker, an empty gallery. ImageReadError: a picture that cannot be read.
        """
        model._require_ranker()
        encoded_images, encoded_texts = encode_images(model, processor, images), encode_texts(model, processor, texts)
        lengths = encoded_texts.attention_mask.sum(dim=1)
        cosine = encoded_texts.embeds @ encoded_images.embeds.t()
        return cls(model, RankedTexts(encoded_texts.hidden_states, lengths), encoded_images.hidden_states, cosine)

    def hard_weights(self, image_ids: Sequence, text_ids: Sequence) -> Tensor:
        """(T, I): softmax of cosine / temperature without the true pairs, as FGR draws (design of the paper)."""
        positives = positive_pairs(image_ids, text_ids).to(self.cosine.device)
        return hard_negative_weights(self.cosine / self.model.bounded_temperature().detach(), positives)

    def probabilities(self, pairs: PairList) -> Tensor:
        """The model's own match probability of each pair: (P,) float32."""
        ranker = FastRanker(self.model)
        images = ranker.prepare(self.states)
        device = self.states.device
        index = pairs.text_index.to(device), pairs.image_index.to(device)
        return ranker.logits(self.texts, images, *index).match_probability.cpu()

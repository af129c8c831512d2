"""Recall@K from scores, without a model.

Ties are counted against the model: an item that scores the same as the right one counts as ranked above it, so
a collapsed model that gives every pair one score reaches no recall, whatever the order of the files. NaN scores
count the same way.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from .encoding import (
    is_token_wise,
)
from .finite import require_finite


def first_hit_ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Rank of the best right item of every query, counted from 1.

    rank = 1 + (number of wrong items that score at least as high): ties and NaN count against the model. Other
    right items never push a query down.

    Args:
        scores: (Q, G) of Q queries over a gallery of G.
        positives: (Q, G) boolean.

    Returns:
        (Q,) int64.

    Raises:
        ValueError: unequal shapes, or a query without any right item in the gallery.
    """
    if scores.shape != positives.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and positives {tuple(positives.shape)} differ in shape")
    hopeless = ~positives.any(dim=1)
    if hopeless.any():
        row = int(hopeless.nonzero()[0])
        raise ValueError(
            f"{int(hopeless.sum())} of {len(scores)} queries have no right item in the gallery, the first is "
            f"query {row}: leave them out or add their items (do the ids of pictures and texts agree?)"
        )
    best = scores.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + (~(scores < best) & ~positives).sum(dim=1)


def recall_at(ranks: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries, in percent, whose first right item is among the best K: {K: recall}.

    A K larger than the gallery is reached by every query.

    Args:
        ranks: (Q,) of `first_hit_ranks`.
        ks: cut-offs.

    Raises:
        ValueError: no queries.
    """
    if len(ranks) == 0:
        raise ValueError("recall of no queries: the set is empty")
    return {k: 100 * (ranks <= k).double().mean().item() for k in ks}


def recall_both_ways(
    text_to_image: Tensor, image_to_text: Tensor, positives: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@K in percent in both directions, and their mean.

    Args:
        text_to_image: (T, I) scores of texts over the pictures.
        image_to_text: (I, T) of pictures over the texts.
        positives: (T, I) boolean.
        ks: cut-offs.

    Returns:
        `text_to_image_r1`, …, `image_to_text_r10`, and `mean_recall`, the mean of all of them.
    """
    figures = {}
    for direction, scores, right in (
        ("text_to_image", text_to_image, positives),
        ("image_to_text", image_to_text, positives.t()),
    ):
        for k, recall in recall_at(first_hit_ranks(scores, right), ks).items():
            figures[f"{direction}_r{k}"] = recall
    return {**figures, "mean_recall": sum(figures.values()) / len(figures)}


def retrieval_metrics(prediction: EvalPrediction, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`compute_metrics` of a Trainer: recall@K of pre-ranking in percent, by the cosine of the embeddings.

    Every text is a query over the pictures, one per image id (the first of each, so that five captions of one
    picture do not put it into the gallery five times), and every picture a query over the texts.

    Args:
        prediction: `predictions` (text_embeds (N, D), image_embeds (N, D)), L2-normalised, as
            R2D2ForPreTraining gives them; `label_ids` the image ids (N,): set `label_names=["image_ids"]` in the
            training arguments.

    Returns:
        as `recall_both_ways`; usable as `metric_for_best_model="text_to_image_r1"`.

    Raises:
        ValueError: predictions or labels of another kind.
        NotFiniteError: embeddings of a model that has diverged.
    """
    image_ids = prediction.label_ids
    if isinstance(image_ids, (tuple, list)) and len(image_ids) == 1:
        image_ids = image_ids[0]
    if image_ids is None or isinstance(image_ids, (tuple, list)):
        raise ValueError(
            'retrieval_metrics needs the image ids as labels: set label_names=["image_ids"] in the training '
            "arguments, and let the batches carry image_ids"
        )
    embeds = prediction.predictions
    if not isinstance(embeds, (tuple, list)) or len(embeds) != 2 or any(np.ndim(e) != 2 for e in embeds):
        raise ValueError(
            "retrieval_metrics needs predictions (text_embeds, image_embeds): evaluate an R2D2 model whose config "
            "has its keys_to_ignore_at_inference, and do not set prediction_loss_only"
        )
    text_embeds, image_embeds = (torch.as_tensor(np.asarray(e), dtype=torch.float32) for e in embeds)
    require_finite(text_embeds, "text embeddings")
    require_finite(image_embeds, "picture embeddings")
    image_ids = np.asarray(image_ids)
    if not len(image_ids) == len(text_embeds) == len(image_embeds):
        raise ValueError(
            f"{len(text_embeds)} text embeddings, {len(image_embeds)} image embeddings and {len(image_ids)} "
            "image ids: pairs were expected"
        )
    _, first = np.unique(image_ids, return_index=True)
    first.sort()
    scores = text_embeds @ image_embeds[torch.from_numpy(first)].t()
    positives = torch.from_numpy(image_ids[:, None] == image_ids[None, first])
    return recall_both_ways(scores, scores.t(), positives, ks)


def retrieval_metrics_of(model: nn.Module, ks: Sequence[int] = (1, 5, 10)) -> Callable[[EvalPrediction], dict]:
    """`compute_metrics` of a Trainer for a model of this package: `retrieval_metrics`, or the same recalls by
    token-wise similarity.

    Of a token-wise model the Trainer keeps every token's embedding, N·D numbers a picture: evaluate on thousands of
    pairs while training, not on millions.
    """
    if not is_token_wise(model):
        # Wukong's output has the mask of the texts behind the embeddings
        return lambda found: retrieval_metrics(EvalPrediction(found.predictions[:2], found.label_ids), ks)

    def metrics(found: EvalPrediction) -> dict[str, float]:
        image_ids = np.asarray(found.label_ids[0] if isinstance(found.label_ids, (tuple, list)) else found.label_ids)
        texts, images = (torch.as_tensor(np.asarray(e), dtype=torch.float32) for e in found.predictions[:2])
        _, first = np.unique(image_ids, return_index=True)
        first.sort()
        # real tokens have length 1; padding is zero, or what the Trainer fills up with, whose length is not 1
        mask = (texts.norm(dim=2) - 1).abs() < 0.1
        texts = texts * mask[:, :, None]
        device = model.device
        with torch.no_grad():
            compared = model.similarities(images[torch.from_numpy(first)].to(device), texts.to(device), mask.to(device))
        per_image, per_text = compared.both
        positives = torch.from_numpy(image_ids[:, None] == image_ids[None, first])
        return recall_both_ways(per_text.cpu(), per_image.cpu(), positives, ks)

    return metrics

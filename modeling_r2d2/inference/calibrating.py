"""Calibrate a model on a gallery that training has not seen: all its true pairs, and wrong ones that are drawn."""

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from ..processing.datasets import PairDataset, load_pairs
from ..processing.datasets.gallery import Gallery, GalleryImages
from ..processing.datasets.pair_sets import as_pairs
from ..processing.datasets.streaming import StreamingPairs
from .calibration import Calibration, Method, Reliability, fit_log_odds, reliability
from .encoding import encode_images, encode_texts
from .identity import identity_of_weights
from .models import load_model
from .negatives import draw_negatives, similarity_logits
from .ranker import ranker_of

Negatives = Literal["uniform", "hard"]
#: Wrong pairs for each true one: uniform ones are cheap, and show how improbable wrong pairs are.
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


@dataclass(frozen=True)
class Evidence:
    """What a model says of P pairs: log_odds of a match, similarity s/τ; with their labels, 1 = true. (P,) each."""

    log_odds: Tensor
    similarity: Tensor
    labels: Tensor

    @property
    def probability(self) -> Tensor:
        """(P,) float32, not calibrated."""
        return self.log_odds.sigmoid()

    def calibrated(self, calibration: Calibration) -> Tensor:
        """(P,) float32."""
        return calibration.of_log_odds(self.log_odds, self.similarity)


def load_gallery(data: str | PathLike, **reading: Any) -> Gallery:
    """A gallery of image-text pairs: the picture and the first text of each; equal image_ids belong together.

    Args:
        data: what `load_pairs` reads, or "demo": the Samsung emoji that the demo's training leaves out,
            "emoji:samsung/calibration"; "demo:twitter" for another vendor.
        reading: options of `load_pairs`; pairs whose picture is broken are left out within its `max_error_rate`.

    Raises:
        DataRefusedError, FileNotFoundError, ValueError: as `load_pairs`; a stream of shards; labelled pairs.
    """
    name, _, vendor = str(data).partition(":")
    if name == "demo":
        data = f"emoji:{vendor}" if vendor else "emoji:samsung/calibration"
    pairs = load_pairs(data, **reading)
    if isinstance(pairs, StreamingPairs):
        raise ValueError(f"{data} is a stream of shards, and calibration draws pairs from a list: unpack it")
    if pairs.labelled:
        raise ValueError(f"{data} holds labelled pairs, and calibration draws its wrong pairs itself: give true ones")
    return gallery_of(pairs)


def gallery_of(pairs: Any) -> Gallery:
    """The gallery of a set of pairs, see `load_gallery`.

    Raises:
        DataRefusedError: too many pictures cannot be read.
    """
    pairs = pairs.drop_unreadable() if isinstance(pairs, PairDataset) else as_pairs(pairs)
    ids = pairs.image_ids().tolist()
    images = GalleryImages([(pairs, row) for row in range(len(pairs))])
    return Gallery(images, ids, pairs.first_texts(), [[key] for key in ids])


def draw_pairs(
    positives: Tensor,
    negatives: Negatives = "uniform",
    per_positive: int | None = None,
    seed: int = 0,
    logits: Tensor | None = None,
) -> PairList:
    """All true pairs of a gallery, and for each of them wrong pictures for its text. `Calibration.prior` makes up for
    the share of true pairs that this gives.

    Args:
        positives: (T, I) boolean.
        negatives: drawn uniformly, or hard ones.
        per_positive: wrong pictures for each true pair, as far as there are so many; default: `PER_POSITIVE`.
        seed: of the draw.
        logits: (T, I) for hard ones: `similarity_logits` of the model that the list is made with.

    Raises:
        ValueError: no true pair, no wrong one, or hard negatives without logits.
    """
    if not positives.any() or positives.all():
        raise ValueError("calibration needs true and wrong pairs: the gallery has pairs of one kind only")
    if negatives not in PER_POSITIVE:
        raise ValueError(f"negatives is {negatives!r}; use 'uniform' or 'hard'")
    if negatives == "uniform":
        logits = torch.zeros(positives.shape)
    elif logits is None:
        raise ValueError("hard negatives are drawn by a model: give its `similarity_logits`")
    text_index, image_index = positives.nonzero(as_tuple=True)
    count = min(per_positive or PER_POSITIVE[negatives], int((~positives).sum(dim=1).min()))
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_negatives(logits.double()[text_index], positives[text_index], count, generator)
    return PairList(
        torch.cat([text_index, text_index.repeat_interleave(count)]),
        torch.cat([image_index, drawn.flatten()]),
        torch.cat([torch.ones(len(text_index)), torch.zeros(drawn.numel())]).long(),
    )


def calibrate_model(
    model: str | PathLike,
    gallery: Gallery,
    negatives: Negatives = "uniform",
    per_positive: int | None = None,
    prior: float | None = None,
    method: Method = "best",
    seed: int = 0,
    test: Gallery | None = None,
) -> tuple[Calibration, Evidence]:
    """Fit on a gallery.

    Args:
        method: of `fit_log_odds`; "fused" and its trial by "best" are of uniformly drawn wrong pairs alone, since hard
            ones are drawn by pre-ranking's own evidence.

    Returns:
        the calibration (not yet stored), and what the model says of the pairs of `test` where it is given, else of the
        pairs fitted.

    Raises:
        ValueError: a model without a ranker, "fused" with hard wrong pairs; as `load_model`, `draw_pairs`,
            `fit_log_odds`.
    """
    if method == "fused" and negatives != "uniform":
        raise ValueError("'fused' weighs what hard wrong pairs are drawn by: fit it on uniform ones")
    network, processor = load_model(model)
    ranker = ranker_of(network)

    def measured(part: Gallery) -> tuple[Evidence, PairList]:
        images, texts = encode_images(network, processor, part.images), encode_texts(network, processor, part.texts)
        logits = similarity_logits(network, texts, images)
        pairs = draw_pairs(part.positives(), negatives, per_positive, seed, logits)
        log_odds = ranker.match_log_odds(texts, images, pairs.text_index, pairs.image_index)
        return Evidence(log_odds, logits[pairs.text_index, pairs.image_index], pairs.labels), pairs

    found, pairs = measured(gallery)
    similarity = found.similarity if negatives == "uniform" else None
    fitted = fit_log_odds(found.log_odds, found.labels, similarity, pairs.groups, prior, method=method)
    fitted = replace(fitted, ranker=identity_of_weights(network))
    return fitted, found if test is None else measured(test)[0]


def measure(found: Evidence, calibration: Calibration) -> dict[str, Reliability]:
    """Reliability before and after calibration; after at the measured pairs' own share of true ones."""
    share = float(found.labels.double().mean())
    return {
        "before": reliability(found.probability, found.labels),
        "after": reliability(found.calibrated(calibration.with_prior(share)), found.labels),
    }

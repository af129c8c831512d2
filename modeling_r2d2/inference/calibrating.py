"""Calibrate a model on a gallery that training has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import Tensor

from ..processing.datasets.gallery import GalleryImages
from .calibration import Calibration, Reliability, fit_calibration, ranker_digest, reliability
from .calibration_pairs import Gallery, Negatives, PairList, draw_pairs
from .models import load_model


@dataclass(frozen=True)
class LabelledGallery:
    """Pictures (PIL or paths) and texts with the ids that say which belong together, see `positive_pairs`."""

    images: Sequence[Any]
    texts: Sequence[str]
    image_ids: Sequence
    text_ids: Sequence


def load_gallery(data: str | PathLike, **reading: Any) -> LabelledGallery:
    """A gallery of image-text pairs: pictures, decoded on access, and first texts, told apart by image_id.

    Args:
        data: what `load_pairs` reads, or "demo": the Samsung emoji that the demo's training leaves out; "demo:twitter"
            for another vendor.
        reading: options of `load_pairs`; pairs whose picture is broken are left out within its `max_error_rate`.

    Raises:
        DataRefusedError, FileNotFoundError, ValueError: as `load_pairs`; a stream of shards; labelled pairs.
    """
    if str(data).split(":")[0] == "demo":
        from ..processing.datasets.emoji import EmojiPairs

        vendor = str(data).partition(":")[2]
        pairs = EmojiPairs([vendor]) if vendor else EmojiPairs(["samsung"], calibration="only")
        ids = pairs.keys()
        return LabelledGallery(_images(pairs), pairs.names(), ids, ids)
    from ..processing.datasets import load_pairs

    pairs = load_pairs(data, **reading)
    if not hasattr(pairs, "image_ids"):
        raise ValueError(f"{data} is a stream of shards, and calibration draws pairs from a list: unpack it")
    if pairs.labelled:
        raise ValueError(f"{data} holds labelled pairs, and calibration draws its wrong pairs itself: give true ones")
    pairs = pairs.drop_unreadable()
    ids = pairs.image_ids().tolist()
    return LabelledGallery(_images(pairs), pairs.first_texts(), ids, ids)


def _images(pairs: Any) -> GalleryImages:
    return GalleryImages([(pairs, row) for row in range(len(pairs))])


def pairs_of(
    gallery: LabelledGallery,
    encoded: Gallery,
    negatives: Negatives = "uniform",
    per_positive: int | None = None,
    seed: int = 0,
) -> PairList:
    """The pairs to fit or measure on; hard ones are drawn by this model, and may serve others too."""
    ids = gallery.image_ids, gallery.text_ids
    weights = encoded.hard_weights(*ids) if negatives == "hard" else None
    return draw_pairs(*ids, negatives, per_positive, seed, weights)


def calibrate_model(
    model: str | PathLike,
    gallery: LabelledGallery,
    negatives: Negatives = "uniform",
    per_positive: int | None = None,
    prior: float | None = None,
    method: str = "best",
    seed: int = 0,
    test: LabelledGallery | None = None,
) -> tuple[Calibration, tuple[Tensor, Tensor]]:
    """Fit on a gallery.

    Returns:
        the calibration (not yet stored), and the model's probabilities (P,) with their labels (P,): of `test` where it
        is given, else of the pairs fitted.
    """
    network, processor = load_model(model)

    def measured(part: LabelledGallery) -> tuple[Tensor, PairList]:
        encoded = Gallery.encode(network, processor, part.images, part.texts)
        pairs = pairs_of(part, encoded, negatives, per_positive, seed)
        return encoded.probabilities(pairs), pairs

    probability, pairs = measured(gallery)
    fitted = fit_calibration(probability, pairs.labels, pairs.groups, prior, method=method)
    fitted = replace(fitted, ranker=ranker_digest(network))
    if test is not None:
        probability, pairs = measured(test)
    return fitted, (probability, pairs.labels)


def measure(found: tuple[Tensor, Tensor], calibration: Calibration) -> dict[str, Reliability]:
    """Reliability before and after calibration; after at the measured pairs' own share of true ones."""
    probability, labels = found
    share = float(labels.double().mean())
    return {
        "before": reliability(probability, labels),
        "after": reliability(calibration.with_prior(share)(probability), labels),
    }

"""A ranker on frozen towers: what they make of a set is made once, and each batch brings its negatives along."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..inference.packing import Precision
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_r2d2 import R2D2Processor
from ..processing.collation import PretrainingDataset, R2D2PretrainingCollator
from ..processing.datasets.pair_sets import Pairs, as_pairs
from ..processing.files.images import ImageReadError, as_processor_reads
from ..processing.masking import TextMasking
from .kept_states import Images, KeptStates, StatesStore
from .negatives import PairListing, WholeSetNegatives


class FrozenTowersDataset(PretrainingDataset):
    """Pairs, each with a wrong text and a wrong picture of the whole set: numbers of pictures, tokens of texts.

    Position p of a run is pair p % N of pass p // N as in `PretrainingDataset`; which of its texts it has, which
    negatives, and how they are masked follows from the seed and p alone.

    Args:
        pairs: of `PretrainingDataset`.
        processor: of it.
        listing: what they consist of.
        negatives: of the same.
        masking: of `PretrainingDataset`.
        seed: of it.
        passes: of it.
        step_size: pairs of an optimizer step, of all processes.
        ramp: steps over which β rises from 0 to 1, `negative_ramp` of the run.
    """

    def __init__(
        self,
        pairs: Pairs,
        processor: R2D2Processor,
        listing: PairListing,
        negatives: WholeSetNegatives,
        masking: TextMasking | None = None,
        seed: int = 0,
        passes: int = 1,
        step_size: int = 1,
        ramp: int = 0,
    ) -> None:
        super().__init__(pairs, processor, None, masking, seed, passes, shuffle=True)
        self.listing, self.negatives, self.step_size, self.ramp = listing, negatives, step_size, ramp

    def sharpness(self, position: int) -> float:
        """β of a position."""
        return min(position // self.step_size / self.ramp, 1.0) if self.ramp else 1.0

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        """Samples; their negatives are drawn together."""
        rngs = [self.generator(position) for position in positions]
        rows = [self.row(position) for position in positions]
        listing = self.listing
        own = [listing.texts_of[row] for row in rows]
        texts = np.array([each[rng.integers(len(each))] for each, rng in zip(own, rngs, strict=True)])
        images = listing.images[rows]
        uniform = np.stack([rng.random(2) for rng in rngs])
        sharpness = np.array([self.sharpness(position) for position in positions])
        wrong_images, wrong_texts, valid = self.negatives.draw(texts, images, uniform, sharpness)
        return [
            {
                "image": int(images[place]),
                "wrong_image": int(wrong_images[place]),
                "text": self.encode.tokens(listing.texts[texts[place]], rng),
                "wrong_text": self.encode.tokens(listing.texts[wrong_texts[place]], rng),
                "valid": bool(valid[place]),
            }
            for place, rng in enumerate(rngs)
        ]


class FrozenTowersCollator(R2D2PretrainingCollator):
    """Samples of a `FrozenTowersDataset` -> the batch of `R2D2ForPreTraining` that brings its negatives along: 2B
    pictures and texts, the wrong ones behind. Other samples as `R2D2PretrainingCollator` does, for evaluation.

    Args:
        processor: an `R2D2Processor`.
        images: what the model gets of pictures: their states, or themselves.
    """

    def __init__(self, processor: R2D2Processor, images: Images | KeptStates) -> None:
        super().__init__(processor)
        self.images = images

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """See above."""
        if "wrong_image" not in samples[0]:
            return super().__call__(samples)
        images = [sample[name] for name in ("image", "wrong_image") for sample in samples]
        batch: dict[str, Any] = {
            **self.images.inputs(images),
            **self.texts([sample[name] for name in ("text", "wrong_text") for sample in samples]),
            "valid_negatives": torch.tensor([sample["valid"] for sample in samples]),
            "return_loss": True,
        }
        if "mlm_labels" in batch:
            batch["mlm_labels"] = batch["mlm_labels"][: len(samples)]
        return batch


def frozen_towers_data(
    model: R2D2ForPreTraining,
    processor: R2D2Processor,
    pairs: Any,
    folder: Path,
    precision: Precision | None = "float32",
    workers: int = 0,
    replace: bool = False,
    *,
    steps: int,
    step_size: int,
    **sampling: Any,
) -> tuple[FrozenTowersDataset, FrozenTowersCollator]:
    """The data of a run whose towers stand still: the set is encoded here, as far as it is not in `folder` yet.

    Args:
        pairs: a set of pairs with a length.
        folder: of what the towers make of it, see `StatesStore`.
        precision: in which the image tower's states are kept there; None: they are made anew for each batch.
        workers: processes that read pictures.
        replace: what another model, or other data, have left in the folder may go.
        steps: of the run.
        step_size: of `FrozenTowersDataset`.
        sampling: `masking`, `seed`, `ramp` of it.

    Raises:
        DataRefusedError: too many pictures cannot be read.
        FileExistsError: something else is in the folder.
        ValueError: no pair has a negative; the folder belongs to another model or other data.
    """
    pairs = as_processor_reads(as_pairs(pairs), processor)
    whole = listing = PairListing.of(pairs)
    store = StatesStore(folder, model, processor, Images(pairs, listing.rows, processor), listing.texts, precision)
    store.fill(workers, replace)
    images, texts, broken = store.embeds()
    slots = np.flatnonzero(~np.isin(np.arange(len(images)), list(broken)))
    if broken:
        for row, image in enumerate(listing.images.tolist()):
            if image in broken:
                pairs.record_unreadable(row, ImageReadError(broken[image]))
        pairs = pairs.select(np.flatnonzero(np.isin(listing.images, slots)))
        listing = PairListing.of(pairs)  # in the order of before
        places = {text: place for place, text in enumerate(whole.texts)}
        texts = texts[[places[text] for text in listing.texts]]
    negatives = WholeSetNegatives(listing, images[slots], texts, float(model.current_temperature()))
    passes = math.ceil(steps * step_size / len(pairs))
    dataset = FrozenTowersDataset(pairs, processor, listing, negatives, passes=passes, step_size=step_size, **sampling)
    kept = Images(pairs, listing.rows, processor) if store.precision is None else KeptStates(store, slots)
    return dataset, FrozenTowersCollator(processor, kept)


__all__ = ["FrozenTowersCollator", "FrozenTowersDataset", "frozen_towers_data"]

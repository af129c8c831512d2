"""A ranker on frozen towers: what they make of a set is made once, and each batch brings its negatives along."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..inference.encoding import encode_texts, evaluating, name_of
from ..inference.finite import require_finite
from ..model.modeling_r2d2 import normalize
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_r2d2 import R2D2Processor
from ..processing.collation import PretrainingDataset, R2D2PretrainingCollator, SampleEncoder
from ..processing.datasets.pair_sets import Pairs, as_pairs
from ..processing.files.images import ImageReadError, as_processor_reads
from ..processing.files.progress import bar
from ..processing.masking import TextMasking
from .negatives import PairListing, WholeSetNegatives

#: Pictures and texts that the towers encode at a time.
_BATCH = 32


class Images:
    """The distinct pictures of a set as the image tower takes them, not augmented.

    Args:
        pairs: as the processor reads them.
        rows: (I,) a pair of each picture.
        processor: whose size and normalisation they get.
    """

    def __init__(self, pairs: Pairs, rows: np.ndarray, processor: R2D2Processor) -> None:
        self.pairs, self.rows = pairs, rows
        self.encoder, self.collator = SampleEncoder(processor), R2D2PretrainingCollator(processor)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> np.ndarray | ImageReadError:
        """(H, W, 3) uint8, or why it cannot be read."""
        try:
            return self.encoder.prepare(self.pairs[int(self.rows[number])])["image"]
        except ImageReadError as error:
            return error

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W) of some.

        Raises:
            ImageReadError: one cannot be read.
        """
        found: list[np.ndarray] = []
        for number in numbers:
            image = self[number]
            if isinstance(image, ImageReadError):
                raise image
            found.append(image)
        return {"pixel_values": self.collator.pixels(found)}


@dataclass(frozen=True)
class KeptStates:
    """The image tower's states of all pictures, in memory: (I, N, E)."""

    states: Tensor

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`image_states` (B, N, E) of some."""
        return {"image_states": self.states[torch.as_tensor(numbers)]}


def encode_images(
    model: R2D2ForPreTraining, images: Images, keep: Callable[[Tensor], Any], workers: int = 0
) -> tuple[Tensor, dict[int, ImageReadError]]:
    """What frozen towers make of pictures, in evaluation mode.

    Args:
        keep: takes the states (B, N, E) of each batch in turn, of those that could be read.
        workers: processes that read pictures.

    Returns:
        embeddings (I', D) of those that could be read, float32 on the CPU; and why the others could not, by number.
    """
    given: Any = images  # which has a length and items, as a data set of torch's
    loader: DataLoader = DataLoader(given, batch_size=_BATCH, num_workers=workers, collate_fn=list)
    embeds: list[Tensor] = []
    broken: dict[int, ImageReadError] = {}
    number = 0
    with evaluating(model), bar(doing="encoding pictures", total=len(images)) as shown:
        for read in loader:
            broken |= {number + place: each for place, each in enumerate(read) if isinstance(each, ImageReadError)}
            number += len(read)
            whole = [each for each in read if not isinstance(each, ImageReadError)]
            if whole:
                pixels = images.collator.pixels(whole).to(model.device, model.dtype)
                output = model.get_image_features(pixels, return_dict=True)
                embeds.append(normalize(output.pooler_output.float()).cpu())
                keep(output.last_hidden_state)
            shown.update(len(read))
    found = torch.cat(embeds) if embeds else torch.empty(0, model.config.projection_dim)
    require_finite(found, f"picture embeddings of {name_of(model)}")
    return found, broken


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
    workers: int = 0,
    **sampling: Any,
) -> tuple[FrozenTowersDataset, FrozenTowersCollator]:
    """The data of a run whose towers stand still: the set is encoded here.

    Args:
        pairs: a set of pairs with a length.
        workers: processes that read pictures.
        sampling: `masking`, `seed`, `steps`, `step_size`, `ramp` of `FrozenTowersDataset`.

    Raises:
        DataRefusedError: too many pictures cannot be read.
        ValueError: no pair has a negative.
    """
    pairs = as_processor_reads(as_pairs(pairs), processor)
    listing = PairListing.of(pairs)
    states: list[Tensor] = []
    images, broken = encode_images(
        model, Images(pairs, listing.rows, processor), lambda each: states.append(each.cpu()), workers
    )
    if broken:
        for row, image in enumerate(listing.images):
            if (error := broken.get(int(image))) is not None:
                pairs.record_unreadable(row, error)
        pairs = pairs.select(np.flatnonzero(~np.isin(listing.images, list(broken))))
        listing = PairListing.of(pairs)
    texts = encode_texts(model, processor, listing.texts, _BATCH, keep_states=False, device="cpu").embeds
    negatives = WholeSetNegatives(listing, images, texts, float(model.current_temperature()))
    steps = sampling.pop("steps")
    passes = math.ceil(steps * sampling["step_size"] / len(pairs))
    dataset = FrozenTowersDataset(pairs, processor, listing, negatives, passes=passes, **sampling)
    return dataset, FrozenTowersCollator(processor, KeptStates(torch.cat(states)))


__all__ = [
    "FrozenTowersCollator",
    "FrozenTowersDataset",
    "KeptStates",
    "Images",
    "encode_images",
    "frozen_towers_data",
]

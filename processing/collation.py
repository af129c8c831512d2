"""From pairs to batches: text choice, augmentation, masking and padding, all stateless.

Every random choice of a sample comes from a generator keyed by (seed, epoch, position), so a batch depends on
nothing else: not on the number of workers, not on their timing, not on where a run was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .augmentation import Augmentation
from .batch_augmentation import BatchAugmentation
from .datasets.pair_sets import as_pairs
from .datasets.records import stable_id
from .files.images import ImageReadError, as_processor_reads, open_image, opening_of, tower_size, upright_rgb
from .masking import IGNORE_INDEX, TextMasking
from .sampling import batched_permutation

if TYPE_CHECKING:
    from ..model.processing_r2d2 import R2D2Processor

logger = logging.getLogger(__name__)

MAX_CACHED_TEXTS = 50_000


class SampleEncoder:
    """Turns one pair into arrays.

    Args:
        processor: one that squashes pictures to one size, as `R2D2Processor.build` makes it, or crops their centre.
        augmentation: called as `augmentation(picture, generator)`, or a `BatchAugmentation`, whose random numbers
            are drawn here and which `augment` applies to many samples; None: none.
        masking: None: no masked tokens.
        first_text: take the first text of a pair instead of a random one.

    Raises:
        ValueError: the image processor has no fixed height and width, or crops and is not Wukong's.
    """

    def __init__(
        self,
        processor: R2D2Processor,
        augmentation: Augmentation | BatchAugmentation | None = None,
        masking: TextMasking | None = None,
        first_text: bool = False,
    ) -> None:
        self.tokenizer = processor.tokenizer
        self.size, self.shortest = tower_size(processor)
        self.resample = Image.Resampling(processor.image_processor.resample)
        # an image processor that shrinks otherwise than PIL brings its own way (BriVL's): (3, H, W) to (3, S, S) floats
        self.own_squash = getattr(processor.image_processor, "squash", None)
        self.opening = opening_of(processor)
        # a tower that reads its padding gets every text at full length; else the collator pads
        self.padding = "max_length" if getattr(processor, "attend_padding", False) else False
        self.batched = augmentation if isinstance(augmentation, BatchAugmentation) else None
        self.single = None if isinstance(augmentation, BatchAugmentation) else augmentation
        self.masking = masking
        self.first_text = first_text
        self._tokens: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self._warned = False

    def __call__(self, pair: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"image", "text", "image_id"} -> `pixel_values` (H, W, 3) of 0..255, `input_ids` (L,), `image_ids`, and with
        masking `masked_input_ids` and `mlm_labels` (L,)."""
        text = pair["text"]
        if not isinstance(text, str):
            text = text[0 if self.first_text else int(rng.integers(len(text)))]
        image = pair["image"]
        if not isinstance(image, np.ndarray):
            if self.single is not None:
                image = self.single(self._rgb(image), rng)
            augmented = self.single is not None and image.size == self.size
            image = np.asarray(image) if augmented else self._squash(image)
        sample = {"pixel_values": image, "image_ids": stable_id(pair["image_id"])}
        if self.batched is not None:
            sample["draws"] = self.batched.draw(rng)
        return {**sample, **self.tokens(text, rng)}

    def tokens(self, text: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`input_ids` (L,) of a text, and with masking `masked_input_ids` and `mlm_labels` (L,)."""
        input_ids, groups = self._tokenize(text)
        if self.masking is None:
            return {"input_ids": input_ids}
        masked, labels = self.masking(input_ids, rng, groups)
        return {"input_ids": input_ids, "masked_input_ids": masked, "mlm_labels": labels}

    def augment(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Apply a `BatchAugmentation` to samples of this encoder, all at once."""
        if self.batched is not None:
            pixels = torch.from_numpy(np.stack([sample["pixel_values"] for sample in samples]))
            draws = torch.from_numpy(np.stack([sample.pop("draws") for sample in samples]))
            augmented = self.batched(pixels.permute(0, 3, 1, 2).float(), draws)
            rows = augmented.round_().byte().permute(0, 2, 3, 1).numpy()
            for sample, row in zip(samples, rows, strict=True):
                sample["pixel_values"] = row
        return samples

    def prepare(self, pair: dict[str, Any]) -> dict[str, Any]:
        """The pair with its picture squashed already, (H, W, 3), where no augmentation needs it whole."""
        return pair if self.single is not None else {**pair, "image": self._squash(pair["image"])}

    def _squash(self, image: Any) -> np.ndarray:
        """The picture at the size of the model's, as the image processor brings it there."""
        image = self._rgb(image)
        shorter = min(image.size)
        if image.size == self.size and self.shortest in (None, shorter):
            return np.asarray(image)
        if self.own_squash is not None:
            return np.moveaxis(self.own_squash(np.moveaxis(np.asarray(image), -1, 0)), 0, -1)
        if self.shortest is None:
            return np.asarray(image.resize(self.size, self.resample))
        size = tuple(self.shortest if side == shorter else int(self.shortest * side / shorter) for side in image.size)
        left, top = ((side - kept) // 2 for side, kept in zip(size, self.size, strict=True))
        image = image.resize(size, self.resample)
        return np.asarray(image.crop((left, top, left + self.size[0], top + self.size[1])))

    def _rgb(self, image: Any) -> Image.Image:
        read = upright_rgb if isinstance(image, Image.Image) else open_image
        return read(image, **self.opening)

    def _tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Token ids (L,) int64 and, for whole-word masking, the word of each token."""
        known = self._tokens.get(text)
        if known is None:
            masking = self.masking if self.masking is not None and self.masking.whole_words else None
            encoded = self.tokenizer(
                text, truncation=True, padding=self.padding, return_offsets_mapping=masking is not None
            )
            groups = None if masking is None else masking.groups(text, encoded["offset_mapping"])
            known = np.asarray(encoded["input_ids"], dtype=np.int64), groups
            self._warn_if_truncated(text, len(known[0]))
            if len(self._tokens) < MAX_CACHED_TEXTS:
                self._tokens[text] = known
        return known

    def _warn_if_truncated(self, text: str, length: int) -> None:
        if self._warned or length < self.tokenizer.model_max_length:
            return
        whole = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if whole > length:
            self._warned = True
            logger.warning("a text of %d tokens was truncated to %d: %.40s", whole, length, text)


class PretrainingDataset(Dataset):
    """Encoded samples of a map-style set of pairs, for any Trainer.

    With `shuffle`, position p belongs to pass p // N and there to place p % N of that pass's own permutation; so
    read in order (`train_sampling_strategy="sequential"`, the default of `R2D2TrainingArguments`) a whole run is
    one stream that goes on after an interruption exactly where it was. A random sampler works as well. Pairs with
    several texts give a random one; without `shuffle`, the first.

    Args:
        pairs: `len(pairs)`, `pairs[i]` -> {"image", "text", "image_id"}.
        processor: of `SampleEncoder`.
        augmentation: of `SampleEncoder`.
        masking: of `SampleEncoder`.
        seed: of every random choice.
        passes: virtual length in passes over the pairs.
        shuffle: False keeps the order, for evaluation.
        distinct_batch: samples of one batch (of all processes); read in order, every batch then holds distinct
            image ids where the data allow it, since pairs of one id are no negatives of each other.
        cache_bytes: decoded pictures kept in memory, per process, until this is full.

    Raises:
        ValueError: there are no pairs.

    A picture that cannot be decoded is reported to `pairs.record_unreadable`, which refuses or lets the next pair
    of the set stand in.
    """

    def __init__(
        self,
        pairs: Any,
        processor: R2D2Processor,
        augmentation: Augmentation | BatchAugmentation | None = None,
        masking: TextMasking | None = None,
        seed: int = 0,
        passes: int = 1,
        shuffle: bool = False,
        distinct_batch: int | None = None,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        if not len(pairs):
            raise ValueError("there are no pairs")
        self.pairs = as_processor_reads(as_pairs(pairs), processor)
        self.encode = SampleEncoder(processor, augmentation, masking, first_text=not shuffle)
        self.seed = seed
        self.passes = passes
        self.shuffle = shuffle
        self.distinct_batch = distinct_batch
        self.cache_bytes = cache_bytes
        self._cache: dict[int, dict[str, Any]] = {}
        # in shared memory: data loader workers that outlive an epoch hold copies of this object
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._image_ids: np.ndarray | None = None
        self._permutation: tuple[tuple[int, int], np.ndarray] | None = None

    @property
    def epoch(self) -> int:
        """What `set_epoch` set last, in this process or the one that started it."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Other augmentations, masks and order than in the epochs before (Trainer calls it)."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.passes * len(self.pairs)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One encoded sample; `__getitems__` of one."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        """Encoded samples; a data loader asks for a batch by this, and a `BatchAugmentation` treats it as one.

        Raises:
            DataRefusedError: too many pictures cannot be decoded.
        """
        return self.encode.augment([self._sample(position) for position in positions])

    def _sample(self, position: int) -> dict[str, Any]:
        return self.encode(self._read(self.row(position)), self.generator(position))

    def row(self, position: int) -> int:
        """The pair that stands at a position.

        Raises:
            IndexError: there is no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        number, place = divmod(position, len(self.pairs))
        return int(self.permutation(number)[place]) if self.shuffle else place

    def generator(self, position: int) -> np.random.Generator:
        """Of all random choices at a position."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.epoch, position))))

    def _read(self, index: int) -> dict[str, Any]:
        for step in range(len(self.pairs)):
            place = (index + step) % len(self.pairs)
            try:
                return self._load(place)
            except ImageReadError as error:
                self.pairs.record_unreadable(place, error)
        raise ImageReadError("not one picture of the set can be read")

    def _load(self, index: int) -> dict[str, Any]:
        """A pair, from the cache if it is there: small sets are decoded once."""
        if (cached := self._cache.get(index)) is not None:
            return cached
        pair = self.encode.prepare(self.pairs[index])
        image = pair["image"]
        if isinstance(image, Image.Image):
            size = image.width * image.height * 3
        else:
            size = getattr(image, "nbytes", self.cache_bytes + 1)
        if size <= self.cache_bytes:
            self.cache_bytes -= size
            self._cache[index] = pair
        return pair

    def permutation(self, number: int) -> np.ndarray:
        """Order of pass `number`: (N,) int64."""
        key = (self.epoch, number)
        if self._permutation is None or self._permutation[0] != key:

            def generator(of_pass: int, stream: int) -> np.random.Generator:
                return np.random.default_rng((self.seed, key[0], of_pass, stream))

            if self.distinct_batch is None:
                order = generator(number, 0).permutation(len(self.pairs))
            else:
                # what belongs together is dealt as one; its first pair stands for it
                group = self.pairs.together
                batch = max(self.distinct_batch // group, 1)
                order = batched_permutation(self.image_ids()[::group], batch, number, generator)
                if group > 1:
                    order = (group * order[:, None] + np.arange(group)).ravel()
            self._permutation = (key, order)
        return self._permutation[1]

    def image_ids(self) -> np.ndarray:
        """(N,) int64, read without opening a picture."""
        if self._image_ids is None:
            self._image_ids = self.pairs.image_ids()
        return self._image_ids


class StreamingPretrainingDataset(IterableDataset):
    """Encoded samples of a stream of pairs (`StreamingPairs`). Random choices are keyed by the place that a sample
    comes from (shard and key), so they do not depend on the number of workers."""

    def __init__(
        self,
        pairs: Any,
        processor: R2D2Processor,
        augmentation: Augmentation | BatchAugmentation | None = None,
        masking: TextMasking | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pairs = as_processor_reads(pairs, processor)
        self.encode = SampleEncoder(processor, augmentation, masking)
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """What `set_epoch` set last, in this process or the one that started it."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle and augment anew (Trainer calls it)."""
        self._epoch.fill_(epoch)
        self.pairs.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for pair in self.pairs:
            place = stable_id(pair.get("location") or pair["image_id"])
            sequence = np.random.SeedSequence((self.seed, self.epoch, place))
            yield self.encode.augment([self.encode(pair, np.random.Generator(np.random.Philox(sequence)))])[0]


class R2D2PretrainingCollator:
    """Encoded samples -> the batch of `R2D2ForPreTraining`.

    `pixel_values` (B, 3, H, W) float32, normalised as the image processor does; `input_ids`, `attention_mask` and,
    where samples carry them, `masked_input_ids` and `mlm_labels` (B, L), padded to the longest; `image_ids` (B,)
    int64; `return_loss` True.

    Args:
        processor: an `R2D2Processor`.
        channels_last: memory layout of `pixel_values`; convolutions on a CPU are some 15 % faster with it. Not the
            default: torch 2.13 corrupts memory in the backward pass of a strided 1 × 1 convolution of 8 channels.
    """

    def __init__(self, processor: R2D2Processor, channels_last: bool = False) -> None:
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        image = processor.image_processor
        mean, std = (np.asarray(v, dtype=np.float64) for v in (image.image_mean, image.image_std))
        # (x · rescale − mean) / std as one multiplication and one addition
        self.scale = torch.tensor(image.rescale_factor / std, dtype=torch.float32).view(1, 3, 1, 1)
        self.shift = torch.tensor(-mean / std, dtype=torch.float32).view(1, 3, 1, 1)
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "pixel_values": self.pixels([sample["pixel_values"] for sample in samples]),
            **self.texts(samples),
            "return_loss": True,
        }
        if "image_ids" in samples[0]:
            batch["image_ids"] = torch.tensor([sample["image_ids"] for sample in samples])
        return batch

    def pixels(self, images: list[np.ndarray]) -> torch.Tensor:
        """`pixel_values` (B, 3, H, W) of pictures (H, W, 3) uint8."""
        pixels = torch.from_numpy(np.stack(images))
        pixels = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, pixels, self.scale)

    def texts(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What the batch holds of their texts."""
        lengths = np.array([len(sample["input_ids"]) for sample in samples])
        attention_mask = np.arange(lengths.max()) < lengths[:, None]
        batch = {
            "input_ids": self._pad(samples, "input_ids", attention_mask, self.pad_token_id),
            "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
        }
        if "mlm_labels" in samples[0]:
            batch["masked_input_ids"] = self._pad(samples, "masked_input_ids", attention_mask, self.pad_token_id)
            batch["mlm_labels"] = self._pad(samples, "mlm_labels", attention_mask, IGNORE_INDEX)
        return batch

    @staticmethod
    def _pad(samples: list[dict], name: str, mask: np.ndarray, fill: int) -> torch.Tensor:
        padded = np.full(mask.shape, fill, dtype=np.int64)
        padded[mask] = np.concatenate([sample[name] for sample in samples])
        return torch.from_numpy(padded)

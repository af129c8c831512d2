"""What a training step reads: pictures of one size and the text states of their captions."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..processing.datasets.streaming import StreamingPairs

_MB = 2**20


def to_pixels(image: Image.Image, resolution: int) -> Tensor:
    """The centre square of a picture, resized: (3, S, S) uint8."""
    fitted = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


class CaptionedImages(Dataset):
    """Pairs as `{"pixels": (3, S, S) uint8, "texts": captions}`, pictures kept after their first use if all fit.

    Args:
        pairs: anything with `len`, `image(index)` and `texts(index)`: what `load_pairs` gives, or `EmojiPairs`.
        resolution: S.
        cache_mb: memory that all pictures together may take to be kept.
    """

    def __init__(self, pairs: Any, resolution: int, cache_mb: int = 1024) -> None:
        self.pairs, self.resolution = pairs, resolution
        shape = (len(pairs), 3, resolution, resolution)
        fits = int(np.prod(shape, dtype=np.int64)) <= cache_mb * _MB
        self._pixels = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._kept = np.zeros(len(pairs), dtype=bool)

    @property
    def in_memory(self) -> bool:
        """Whether pictures are kept."""
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Raises:
            ImageReadError: the picture cannot be decoded; names its file (`drop_unreadable` sorts such out before).
        """
        return {"pixels": self.pixels(index), "texts": self.pairs.texts(index)}

    def pixels(self, index: int) -> Tensor:
        """(3, S, S) uint8."""
        if self._pixels is None:
            return to_pixels(self.pairs.image(index), self.resolution)
        if not self._kept[index]:
            self._pixels[index] = to_pixels(self.pairs.image(index), self.resolution)
            self._kept[index] = True
        return self._pixels[index]


def sample_order(start: int, count: int, size: int, seed: int) -> list[int]:
    """Numbers `start` to `start + count` of an endless sequence of passes, each a permutation of `size` samples."""
    order: list[int] = []
    while count:
        epoch, place = divmod(start, size)
        permutation = np.random.default_rng((seed, epoch)).permutation(size)[place : place + count]
        order += permutation.tolist()
        start, count = start + len(permutation), count - len(permutation)
    return order


class _Batches:
    """Batch sampler that begins at any micro-batch and depends on nothing but the seed."""

    def __init__(self, size: int, batch: int, seed: int, first: int, rank: int, world: int) -> None:
        self.size, self.batch, self.seed, self.first, self.rank, self.world = size, batch, seed, first, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        number = self.first
        while True:
            yield sample_order((number * self.world + self.rank) * self.batch, self.batch, self.size, self.seed)
            number += 1


def batches(
    pairs: Any,
    resolution: int,
    batch_size: int,
    *,
    seed: int = 0,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    cache_mb: int = 1024,
) -> Iterator[dict[str, Any]]:
    """Endless batches `{"pixels": (B, 3, S, S) uint8, "texts": B lists of captions}` from micro-batch `first` on.

    A stream is shuffled by its own buffer and, to begin late, read and passed over up to there.
    """
    if isinstance(pairs, StreamingPairs):
        yield from _stream(pairs, resolution, batch_size, seed, first, rank, world)
        return
    images = CaptionedImages(pairs, resolution, cache_mb)
    yield from DataLoader(
        images,
        batch_sampler=_Batches(len(images), batch_size, seed, first, rank, world),
        collate_fn=_collate,
        num_workers=0 if images.in_memory else workers,
    )


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixels": torch.stack([sample["pixels"] for sample in samples]),
        "texts": [sample["texts"] for sample in samples],
    }


def _stream(pairs, resolution, batch_size, seed, first, rank, world) -> Iterator[dict[str, Any]]:
    stream = pairs.shuffle(seed=seed)
    if world > 1:
        stream = stream.shard_over_processes(rank, world)
    samples, passed, epoch = [], 0, 0
    while True:
        stream.set_epoch(epoch)
        before = passed
        for pair in stream:
            passed += 1
            if passed <= first * batch_size:
                continue
            texts = [pair["text"]] if isinstance(pair["text"], str) else pair["text"]
            samples.append({"pixels": to_pixels(pair["image"], resolution), "texts": texts})
            if len(samples) == batch_size:
                yield _collate(samples)
                samples = []
        if passed == before:
            raise ValueError("the stream gave no pair in a whole pass: there is nothing to train on")
        epoch += 1


class CaptionFeatures:
    """Text states of captions, as the pipeline encodes prompts; of a small closed set computed once.

    Args:
        encode: texts -> states (T, L, D), zero at padding: the pipeline's own encoding.
        texts: the closed set, or None: encode each time.
        cache_mb: largest size to keep.
    """

    def __init__(self, encode: Any, texts: Sequence[str] | None = None, cache_mb: int = 1024) -> None:
        self.encode = encode
        self.table: Tensor | None = None
        unique = [] if texts is None else sorted({"", *texts})
        if unique:
            sample = encode(unique[:1])
            if len(unique) * sample[0].numel() * sample.element_size() <= cache_mb * _MB:
                parts = [encode(unique[start : start + 256]) for start in range(0, len(unique), 256)]
                self.table = torch.cat(parts)
                self.row = {text: number for number, text in enumerate(unique)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(T, L, D) states of `texts`."""
        if self.table is None:
            return self.encode(list(texts))
        rows = torch.tensor([self.row[text] for text in texts], device=self.table.device)
        return self.table[rows]


class ConditionedUNet(nn.Module):
    """UNet and, where it trains too, text encoder as one module: what is wrapped for several processes."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(
        self,
        sample: Tensor,
        timesteps: Tensor,
        states: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The UNet's prediction (B, C, h, w), from text states (B, L, D) or, where they train, token ids (B, L)."""
        if states is None:
            assert self.text_encoder is not None  # it trains, and reads padded texts
            assert attention_mask is not None
            hidden = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            states = hidden * attention_mask[..., None].to(hidden.dtype)
        from ..model.pipeline_text_to_image import padding_mask

        return self.unet(
            sample,
            timesteps,
            encoder_hidden_states=states,
            encoder_attention_mask=padding_mask(states),
            return_dict=False,
        )[0]

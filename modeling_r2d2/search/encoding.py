"""From picture files to the content of a shard: read, hash, squash, encode, pack."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..inference.encoding import encode_texts, evaluating, is_token_wise, name_of, pixels_of
from ..inference.finite import require_finite
from ..inference.ranker import FastRanker
from ..model.modeling_r2d2 import R2D2Model, normalize
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import ImageReadError, open_image, turns_upright
from .cache import CacheOptions, pack, row_checksums
from .images import CollectionImage, digest_of
from .store import ShardContent
from .token_wise import flat_tokens

_SHARD_BYTES, _MOST_IN_SHARD = 2**28, 1024
Progress = Callable[[int, str], Any]


class ShardEncoder:
    """Encodes the pictures of one shard; `batch_size` of them at a time, `progress` told of each batch."""

    def __init__(
        self, model: R2D2Model, processor: R2D2Processor, cache: CacheOptions, batch_size: int, progress: Progress
    ):
        self.model, self.processor, self.cache = model, processor, cache
        self.batch_size, self.progress = batch_size, progress
        self.ranker = FastRanker(model) if cache.keep == "keys_values" else None

    def encode(self, images: Iterable[CollectionImage], reader: ThreadPoolExecutor) -> ShardContent:
        """One shard. The next batch is listed, read and squashed while the tower is at work on this one.

        However large the pictures are, one of them is in memory at a time, beside what the tower takes of two batches.
        """
        good: list[CollectionImage] = []
        contents: list[str] = []
        embeds: list[Tensor] = []
        kept: dict[str, Tensor] = {}
        unreadable: list[dict] = []
        batches = self._batches(images, unreadable)
        with evaluating(self.model):
            upcoming = reader.submit(next, batches, None)
            while (batch := upcoming.result()) is not None:
                upcoming = reader.submit(next, batches, None)
                read, digests, pixel_values = batch
                output = self.model.get_image_features(pixel_values.to(self.model.device, self.model.dtype))
                embeds.append(flat_tokens(normalize(output.pooler_output.float()).cpu()))
                names = [image.location or image.id for image in read]
                require_finite(embeds[-1], f"picture embeddings of {name_of(self.model)}", names)
                if self.cache.keep != "none":
                    packed = pack(self._kept(output.last_hidden_state), self.cache.precision)
                    self._keep(kept, packed, len(good))
                good.extend(read)
                contents.extend(digests)
                self.progress(len(read), "encoding")
        if unreadable:
            self.progress(len(unreadable), "unreadable")
        texts = [text for image in good for text in image.texts]
        text_embeds = torch.empty(0, self.text_dimension)
        if texts:
            distinct = list(dict.fromkeys(texts))
            places = {text: place for place, text in enumerate(distinct)}
            encoded = encode_texts(self.model, self.processor, distinct, keep_states=False, device="cpu").embeds
            flat = flat_tokens(encoded, self.model.config.max_text_length)
            text_embeds = flat[[places[text] for text in texts]]
        cache = {name: tensor[: len(good)] for name, tensor in kept.items()}
        return ShardContent(
            good,
            contents,
            torch.cat(embeds) if embeds else torch.empty(0, self.dimension),
            text_embeds,
            cache,
            row_checksums(cache) if cache else [],
            unreadable,
        )

    def _batches(self, images: Iterable[CollectionImage], unreadable: list[dict]) -> Iterator[tuple]:
        """Whole batches of readable pictures: pictures, content hashes, pixel values."""
        readable: list[tuple[CollectionImage, str, Tensor]] = []
        for item in images:
            try:
                data = item.read()
                upright = turns_upright(self.processor)
                image = open_image(data, name=item.location or item.id, exif_transpose=upright)
                pixels = pixels_of(image, self.processor)
            except ImageReadError as error:
                reason = str(error).removeprefix(f"{item.location}: ").removeprefix(f"{item.path}: ")
                if item.path is not None and Path(item.path).name not in item.location:
                    reason = f"{item.path}: {reason}"  # of a table the location is the line that names the picture
                unreadable.append(problem_of(item, reason))
                continue
            readable.append((replace(item, data=None), digest_of(data), pixels))
            if len(readable) == self.batch_size:
                yield self._batch(readable)
                readable = []
        if readable:
            yield self._batch(readable)

    def _batch(self, readable: list[tuple[CollectionImage, str, Tensor]]) -> tuple:
        images, digests, pixels = zip(*readable, strict=True)
        return images, digests, torch.stack(pixels)

    @staticmethod
    def _keep(kept: dict[str, Tensor], packed: dict[str, Tensor], start: int) -> None:
        """Put what is kept of a batch behind that of the batches before; the room doubles where it is too small."""
        for name, tensor in packed.items():
            end = start + len(tensor)
            if name not in kept or len(kept[name]) < end:
                grown = tensor.new_empty((max(end, 2 * start), *tensor.shape[1:]))
                if start:
                    grown[:start] = kept[name][:start]
                kept[name] = grown
            kept[name][start:end] = tensor

    def _kept(self, states: Tensor) -> dict[str, Tensor]:
        if self.ranker is None:
            return {"states": states}
        images = self.ranker.prepare(states, keys_values=True)
        return {name: tensor for name, tensor in vars(images).items() if tensor.numel()}

    def shard_size(self) -> int:
        """Pictures of a shard, so that it takes no more memory than it must; whole batches."""
        each = 4 * self.dimension
        if self.cache.keep != "none":
            kept = pack(self._kept(self._blank().last_hidden_state), self.cache.precision)
            each += sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
        return max(min(_SHARD_BYTES // each, _MOST_IN_SHARD) // self.batch_size, 1) * self.batch_size

    @cached_property
    def dimension(self) -> int:
        """Numbers that the index keeps of a picture to compare it by: P, or N·P token by token."""
        if not is_token_wise(self.model):
            return self.model.config.projection_dim
        return self._blank().pooler_output[0].numel()

    @property
    def text_dimension(self) -> int:
        """The same of a caption: P, or L·P of the longest that the model reads."""
        config = self.model.config
        return config.projection_dim * (config.max_text_length if is_token_wise(self.model) else 1)

    def _blank(self):
        """Features of an empty picture, for their sizes."""
        blank = self.processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
        with evaluating(self.model):
            return self.model.get_image_features(blank.to(self.model.device, self.model.dtype))


def problem_of(image: CollectionImage, reason: str) -> dict:
    """An entry of the report of unreadable pictures."""
    state = {"size": image.size, "mtime_ns": image.mtime_ns, "path": image.path}
    return {"id": image.id, "location": image.location or image.id, "reason": reason, **state}

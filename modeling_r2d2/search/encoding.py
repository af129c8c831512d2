"""From picture files to what an index holds of them: read, hash, squash, encode, pack."""

from collections.abc import Iterable, Iterator
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
from ..inference.packing import pack
from ..inference.ranker import FastRanker
from ..model.modeling_r2d2 import R2D2Model, normalize
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import ImageReadError, open_image, opening_of
from ..processing.files.record_files import record_layout
from .cache import CacheOptions
from .images import CollectionImage, digest_of
from .plan import Progress, problem_of
from .store import Part, StatesWriter, rows_of
from .token_wise import flat_tokens

_PART_BYTES, _MOST_IN_PART = 2**28, 1024


class Encoder:
    """Encodes pictures, `batch_size` of them at a time; `progress` is called after each batch."""

    def __init__(
        self, model: R2D2Model, processor: R2D2Processor, cache: CacheOptions, batch_size: int, progress: Progress
    ):
        self.model, self.processor, self.cache = model, processor, cache
        self.batch_size, self.progress = batch_size, progress
        self.ranker = FastRanker(model) if cache.keep == "keys_values" else None

    def encode(
        self, images: Iterable[CollectionImage], reader: ThreadPoolExecutor, states: StatesWriter, slot: int
    ) -> Part:
        """Encode pictures. The next batch is read and squashed while the tower is at work on this one.

        However large the pictures are, one of them is in memory at a time, beside what the tower takes of two batches.

        Args:
            images: As many as make a part.
            reader: Reads ahead.
            states: Takes what is kept for the ranker, from `slot` on.
        """
        good: list[CollectionImage] = []
        contents: list[str] = []
        embeds: list[Tensor] = []
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
                if states.layout:
                    states.write(slot + len(good), self._packed(output.last_hidden_state))
                good.extend(read)
                contents.extend(digests)
                self.progress(len(read), "encoding")
        states.sync()
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
        image_embeds = torch.cat(embeds) if embeds else torch.empty(0, self.dimension)
        taken = [slot + place if states.layout else None for place in range(len(good))]
        return Part(rows_of(good, contents, taken), image_embeds.numpy(), text_embeds.numpy(), unreadable)

    def _batches(self, images: Iterable[CollectionImage], unreadable: list[dict]) -> Iterator[tuple]:
        """Whole batches of readable pictures: pictures, content hashes, pixel values."""
        readable: list[tuple[CollectionImage, str, Tensor]] = []
        for item in images:
            try:
                data = item.read()
                image = open_image(data, name=item.location or item.id, **opening_of(self.processor))
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

    def _packed(self, states: Tensor) -> dict[str, Tensor]:
        """What is kept of a batch for the ranker."""
        kept = {"states": states}
        if self.ranker is not None:
            images = self.ranker.prepare(states, keys_values=True)
            kept = {name: tensor for name, tensor in vars(images).items() if tensor.numel()}
        return pack(kept, self.cache.precision)

    @property
    def layout(self) -> tuple[tuple, ...]:
        """The fields of a record of what is kept of a picture; () where nothing is."""
        return () if self.cache.keep == "none" else record_layout(self._packed(self._blank.last_hidden_state))

    @property
    def part_size(self) -> int:
        """Pictures of a part, so that it takes no more memory than it must; whole batches."""
        return max(min(_PART_BYTES // (4 * self.dimension), _MOST_IN_PART) // self.batch_size, 1) * self.batch_size

    @cached_property
    def dimension(self) -> int:
        """Numbers that the index keeps of a picture to compare it by: P, or N·P token by token."""
        if not is_token_wise(self.model):
            return self.model.config.projection_dim
        return self._blank.pooler_output[0].numel()

    @property
    def text_dimension(self) -> int:
        """The same of a caption: P, or L·P of the longest that the model reads."""
        config = self.model.config
        return config.projection_dim * (config.max_text_length if is_token_wise(self.model) else 1)

    @cached_property
    def _blank(self) -> Any:
        """Features of an empty picture, for their sizes."""
        blank = self.processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
        with evaluating(self.model):
            return self.model.get_image_features(blank.to(self.model.device, self.model.dtype))


__all__ = ["Encoder"]

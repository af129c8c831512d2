"""BriVLProcessor: pictures squashed as BriVL's authors do it, their boxes brought to the same size, texts cut.

This file travels to the Hub beside the weights, so it imports only numpy, transformers and flat siblings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase

from .configuration_brivl import BriVLConfig
from .image_processing_brivl import BriVLImageProcessor
from .images_r2d2 import opening_of
from .processing_r2d2 import R2D2Processor, R2D2ProcessorKwargs, _eight_bit

#: The options of a call, under the name that transformers gives those of a processor.
BriVLProcessorKwargs = R2D2ProcessorKwargs


class BriVLProcessor(R2D2Processor):
    """R2D2's processor with BriVL's image processor, and boxes. (Texts are padded to their full length by the model.)

    Args:
        image_processor: e.g. from `BriVLProcessor.build`.
        tokenizer: a BERT tokenizer.
        max_boxes: that are read of a picture, the whole picture among them.
    """

    def __init__(self, image_processor=None, tokenizer=None, max_boxes: int = 37, **kwargs):
        super().__init__(image_processor, tokenizer)
        self.max_boxes = max_boxes

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int = 380,
        max_length: int = 80,
        max_boxes: int = 37,
        **image_kwargs: Any,
    ) -> "BriVLProcessor":
        """A processor for images of `image_size` pixels and texts of at most `max_length` tokens.

        `image_kwargs` go to `BriVLImageProcessor` (`exif_transpose=False` as in `R2D2Processor.build`).
        """
        tokenizer.model_max_length = max_length
        size = {"height": image_size, "width": image_size}
        return cls(BriVLImageProcessor(**{"size": size, **image_kwargs}), tokenizer, max_boxes)

    @classmethod
    def of(cls, config: BriVLConfig, tokenizer: PreTrainedTokenizerBase, **image_kwargs: Any) -> "BriVLProcessor":
        """The processor of a configuration; `image_kwargs` as `build`."""
        boxes = config.vision_config.box_grid**2 + 1
        return cls.build(tokenizer, config.vision_config.image_size, config.max_text_length, boxes, **image_kwargs)

    def __call__(self, images=None, text=None, boxes: Sequence | None = None, **kwargs) -> BatchFeature:
        """As `R2D2Processor`, and boxes.

        Args:
            images: as there.
            text: as there.
            boxes: of every picture a list of [x₁, y₁, x₂, y₂] in pixels of the picture as it is read (upright), from an
                object detector; it may be empty; one list for one picture. The first `max_boxes` − 1 are taken, and the
                whole picture. Without any, the model takes a grid.

        Returns:
            also, with boxes, `boxes` (I, M, 4) float32 in pixels of `pixel_values`, zeros behind a picture's last, and
            `box_mask` (I, M) int64.

        Raises:
            ValueError: as there; boxes without pictures, of another number of them, or that are not four numbers each.
        """
        if boxes is None:
            return super().__call__(images=images, text=text, **kwargs)
        if images is None:
            raise ValueError("boxes are of pictures, and there are none")
        images = list(images) if isinstance(images, (list, tuple)) or hasattr(images, "__next__") else [images]
        images = [_eight_bit(image, opening_of(self), self._rescales(kwargs)) for image in images]
        if len(boxes) and not _is_list_of_boxes(boxes[0]):
            boxes = [boxes]
        if len(boxes) != len(images):
            raise ValueError(f"there are {len(images)} pictures and boxes of {len(boxes)}")
        tensors = kwargs.pop("return_tensors", None) or (kwargs.get("common_kwargs") or {}).get("return_tensors")
        encoded = super().__call__(images=images, text=text, return_tensors=tensors, **kwargs)
        side = self.image_processor.size
        scaled = [
            _scaled(of_one[: self.max_boxes - 1], _size_of(image), (side["width"], side["height"]), number)
            for number, (of_one, image) in enumerate(zip(boxes, images, strict=True))
        ]
        longest = max(len(each) for each in scaled)
        padded = np.zeros((len(scaled), longest, 4), dtype=np.float32)
        mask = np.zeros((len(scaled), longest), dtype=np.int64)
        for row, each in enumerate(scaled):
            padded[row, : len(each)] = each
            mask[row, : len(each)] = 1
        return BatchFeature({**encoded, **BatchFeature({"boxes": padded, "box_mask": mask}, tensor_type=tensors)})


def _is_list_of_boxes(value: Any) -> bool:
    """Whether what `boxes` begins with is one picture's boxes, and not one box."""
    return not len(value) or np.ndim(value[0]) == 1


def _size_of(image: Any) -> tuple[int, int]:
    """(width, height) of a picture."""
    if isinstance(getattr(image, "size", None), tuple):
        return image.size
    shape = image.shape
    height, width = shape[-2:] if len(shape) == 3 and shape[0] in (1, 3) else shape[:2]
    return width, height


def _scaled(boxes: Any, size: tuple[int, int], wanted: tuple[int, int], number: int) -> np.ndarray:
    """Boxes of one picture, in pixels of the model's size, and the whole picture behind them: (M, 4) float32."""
    try:
        own = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if len(boxes) else np.zeros((0, 4))
    except ValueError as error:
        raise ValueError(f"boxes of picture {number} are not four numbers each: {error}") from None
    if not np.isfinite(own).all():
        raise ValueError(f"boxes of picture {number} hold numbers that are not finite")
    whole = np.array([[0, 0, *wanted]], dtype=np.float64)
    return np.concatenate([own * (wanted * 2) / (size * 2), whole]).astype(np.float32)


__all__ = ["BriVLProcessor"]

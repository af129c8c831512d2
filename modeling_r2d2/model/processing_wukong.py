"""WukongProcessor: the shorter side resized to the model's size, the centre cropped; texts cut to 32 tokens.

This file travels to the Hub beside the weights, so it imports only transformers and flat siblings.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from .processing_r2d2 import R2D2Processor, clip_image_processor


class WukongProcessor(R2D2Processor):
    """R2D2's processor with Wukong's evaluation transform: bicubic resize of the shorter side, then a centre crop.

    Args:
        image_processor: of the library, e.g. from `WukongProcessor.build`.
        tokenizer: a BERT tokenizer that pads on the right.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def build(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 224, max_length: int = 32, **image_kwargs: Any
    ) -> "WukongProcessor":
        """A processor for images of `image_size` pixels and texts of at most `max_length` tokens.

        `image_kwargs` go to `CLIPImageProcessor` (other `image_mean`, `image_std`, …; `exif_transpose=False` as in
        `R2D2Processor.build`).
        """
        tokenizer.model_max_length = max_length
        tokenizer.padding_side = "right"
        settings = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
        return cls(clip_image_processor(**{**settings, **image_kwargs}), tokenizer)


__all__ = ["WukongProcessor"]

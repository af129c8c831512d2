"""WukongProcessor: the shorter side resized to the model's size, the centre cropped; texts cut to 32 tokens.

This file travels to the Hub beside the weights, so it imports only transformers and flat siblings.
"""

from typing import Any

from transformers.utils import is_torchvision_available

from .processing_r2d2 import R2D2Processor


class WukongProcessor(R2D2Processor):
    """R2D2's processor with Wukong's evaluation transform: bicubic resize of the shorter side, then a centre crop.

    Args:
        image_processor: of the library, e.g. from `WukongProcessor.build`.
        tokenizer: a BERT tokenizer that pads on the right.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def build(cls, tokenizer, image_size: int = 224, max_length: int = 32, **image_kwargs: Any) -> "WukongProcessor":
        """A processor for images of `image_size` pixels and texts of at most `max_length` tokens.

        `image_kwargs` go to `CLIPImageProcessor` (other `image_mean`, `image_std`, …; `exif_transpose=False` as in
        `R2D2Processor.build`).
        """
        if is_torchvision_available():
            from transformers import CLIPImageProcessor
        else:  # the same processor under its PIL name, which both backends load
            from transformers import CLIPImageProcessorPil as CLIPImageProcessor

        tokenizer.model_max_length = max_length
        tokenizer.padding_side = "right"
        settings = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
        return cls(CLIPImageProcessor(**{**settings, **image_kwargs}), tokenizer)


__all__ = ["WukongProcessor"]

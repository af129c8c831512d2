"""BriVLImageProcessor: pictures squashed as tensors of floats, bilinearly and without antialiasing.

This file travels to the Hub beside the weights, so it imports only numpy, torch and transformers.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class BriVLImageProcessor(PilBackend):
    """RGB / 255, squashed to `size`, then (x − mean) / std. The authors shrink without antialiasing, and so does this:
    PIL's own bilinear filter gives other pixels, by up to 0.9."""

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 380, "width": 380}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    _auto_class = "AutoImageProcessor"

    def squash(self, image: np.ndarray, size: Any = None) -> np.ndarray:
        """A picture (3, H, W) of any range as floats of the same range, (3, S, S) float32."""
        size = self.size if size is None else size
        pixels = torch.from_numpy(np.ascontiguousarray(image)).float()[None]
        shape = (size["height"], size["width"])
        return nn.functional.interpolate(pixels, shape, mode="bilinear", align_corners=False)[0].numpy()

    def _preprocess(  # type: ignore[override]
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        made = []
        for image in images:
            pixels = np.asarray(image, dtype=np.float32)
            if do_rescale:
                pixels = pixels / np.float32(1 / rescale_factor)  # rounded as the authors' division by 255
            if do_resize:
                pixels = self.squash(pixels, size)
            if do_normalize:
                mean, std = (np.asarray(each, dtype=np.float32).reshape(-1, 1, 1) for each in (image_mean, image_std))
                pixels = (pixels - mean) / std
            made.append(pixels)
        return BatchFeature(data={"pixel_values": made}, tensor_type=return_tensors)


__all__ = ["BriVLImageProcessor"]

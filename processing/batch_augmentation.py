"""Augmentation of small pictures as tensors, a whole batch at once: what keeps up with training on a few cores.

A sample's random numbers are drawn where the sample is read, from its own generator; the collator then applies
them to the batch. So results stay a function of (seed, epoch, position), whatever batch a sample falls into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

_DRAWS = 29


@dataclass(frozen=True)
class BatchAugmentation:
    """Affine and colour changes, blur and erasing; every part is off at 0.

    Attributes:
        rotate: degrees, uniform in ± rotate.
        scale: log of the zoom, uniform in ± scale.
        aspect: log of the ratio of zooms along x and y, halved on each; uniform in ± aspect.
        translate: share of the side, uniform in ± translate.
        shear: slope along x and y, uniform in ± shear.
        flip: probability of a horizontal flip.
        saturation: factor 1 ± saturation about the pixel's gray.
        tint: factor 1 ± tint per channel.
        shuffle_channels: its probability.
        grayscale: its probability.
        contrast: factor 1 ± contrast about the picture's mean.
        brightness: factor 1 ± brightness.
        blur: probability of blending with the mean of 3 × 3 pixels, by a uniform weight.
        erase: probability of covering a rectangle with a random colour; its sides are uniform shares in
            `erase_sides`, its centre anywhere.

    What geometric changes uncover is white, as the demo's pictures are composited on white.

    Raises:
        ValueError: a negative value, or a probability above 1.
    """

    rotate: float = 15.0
    scale: float = 0.2
    aspect: float = 0.1
    translate: float = 0.1
    shear: float = 0.1
    flip: float = 0.5
    saturation: float = 0.3
    tint: float = 0.15
    shuffle_channels: float = 0.05
    grayscale: float = 0.05
    contrast: float = 0.3
    brightness: float = 0.3
    blur: float = 0.2
    erase: float = 0.3
    erase_sides: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "erase_sides" and getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must not be negative")
        for name in ("flip", "shuffle_channels", "grayscale", "blur", "erase"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The random numbers of one sample: (29,) float32 in [0, 1)."""
        return rng.random(_DRAWS, dtype=np.float32)

    def __call__(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Augment (B, 3, H, W) float in 0..255 by `draws` (B, 29); returns the same shape and range."""
        draw = draws.t().to(pixels.dtype)
        pixels = self._move(pixels, draw)
        pixels = self._recolor(pixels, draw)
        if self.blur:
            weight = (draw[16] * (draw[17] < self.blur)).view(-1, 1, 1, 1)
            mean = nn.functional.avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
            pixels = torch.lerp(pixels, mean, weight)
        pixels = pixels.clamp(0, 255)
        return self._erase(pixels, draw) if self.erase else pixels

    def _move(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """One bilinear resampling by x ↦ R(rotate) · Shear · diag(zoom) x + translate, in coordinates −1..1."""

        def uniform(row: int, limit: float) -> Tensor:
            return (2 * draw[row] - 1) * limit

        angle = uniform(0, math.radians(self.rotate))
        zoom, aspect = torch.exp(uniform(1, self.scale)), torch.exp(uniform(2, self.aspect))
        width, height = zoom * aspect * torch.where(draw[3] < self.flip, -1.0, 1.0), zoom / aspect
        shear_x, shear_y = uniform(4, self.shear), uniform(5, self.shear)
        cosine, sine = angle.cos(), angle.sin()
        matrix = torch.stack(
            [
                (cosine - sine * shear_y) * width,
                (cosine * shear_x - sine) * height,
                2 * uniform(6, self.translate),
                (sine + cosine * shear_y) * width,
                (sine * shear_x + cosine) * height,
                2 * uniform(7, self.translate),
            ],
            dim=1,
        ).view(-1, 2, 3)
        grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
        # grid_sample pads with zeros: sampled on the inverted picture, what is uncovered is white
        return 255 - nn.functional.grid_sample(255 - pixels, grid, align_corners=False)

    def _recolor(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """Saturation, tint, channel order, gray, contrast and brightness as one matrix a picture: p ↦ M p + c."""

        def factor(row: int, limit: float) -> Tensor:
            return 1 + (2 * draw[row] - 1) * limit

        gray = torch.full((3, 3), 1 / 3, dtype=pixels.dtype)
        identity = torch.eye(3, dtype=pixels.dtype)
        matrix = torch.lerp(gray, identity, factor(8, self.saturation).view(-1, 1, 1))
        tint = torch.stack([factor(row, self.tint) for row in (9, 10, 11)], dim=1)
        matrix = matrix * tint[:, :, None]
        order = torch.where(draw[12, :, None] < self.shuffle_channels, draw[18:21].t(), torch.arange(3)).argsort(dim=1)
        matrix = matrix.gather(1, order[:, :, None].expand(-1, -1, 3))
        matrix = torch.where((draw[13] < self.grayscale).view(-1, 1, 1), gray @ matrix, matrix)
        contrast = factor(14, self.contrast).view(-1, 1, 1)
        brightness = factor(15, self.brightness).view(-1, 1, 1)
        color = (matrix @ pixels.mean(dim=(2, 3))[:, :, None]).mean(dim=1, keepdim=True)
        matrix, constant = matrix * contrast * brightness, (1 - contrast) * color * brightness
        recolored = torch.baddbmm(constant.expand(-1, 3, 1), matrix, pixels.flatten(2))
        return recolored.view_as(pixels)

    def _erase(self, pixels: Tensor, draw: Tensor) -> Tensor:
        least, most = self.erase_sides
        inside = (draw[21] < self.erase)[:, None, None]
        for dimension, (side, center) in ((2, (22, 23)), (1, (24, 25))):
            length = pixels.shape[dimension + 1]
            half = (least + (most - least) * draw[side]) * length / 2
            distance = (torch.arange(length) - draw[center, :, None] * length).abs() < half[:, None]
            inside = inside & (distance[:, None, :] if dimension == 2 else distance[:, :, None])
        color = draw[26:29].t()[:, :, None, None] * 255
        return torch.where(inside[:, None], color, pixels)

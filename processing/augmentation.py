"""Augmentation of pictures with PIL alone. Every random choice comes from the generator that is handed in.

An augmentation is a callable `augment(image, rng) -> image` on RGB `PIL.Image`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Color = tuple[int, int, int]
# CLIP's mean: what geometric operations uncover is (about) zero after normalisation
MEAN_COLOR: Color = (123, 117, 104)
WHITE: Color = (255, 255, 255)
MAX_MAGNITUDE = 10
_LUMA = np.array([0.299, 0.587, 0.114])


class Augmentation(Protocol):
    """What the data layer calls: one RGB picture in, one out, every choice from `rng`."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image: ...


def affine(
    image: Image.Image,
    matrix: Sequence[Sequence[float]],
    fill: Color = MEAN_COLOR,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Move the picture about its centre by a 2 x 2 matrix (output = matrix @ input), or a 2 x 3 one whose last
    column shifts by pixels. Same size; uncovered corners are filled."""
    (a, b, *right), (c, d, *down) = matrix
    x, y = image.width / 2, image.height / 2
    # PIL asks where each output pixel comes from: the inverse
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    u, v = x + (right[0] if right else 0), y + (down[0] if down else 0)
    data = (a, b, x - a * u - b * v, c, d, y - c * u - d * v)
    return image.transform(image.size, Image.Transform.AFFINE, data, resample, fillcolor=fill)


# -- RandAugment --------------------------------------------------------------------------------
# Each takes strength s = magnitude / 10 in [0, 1], a sign, and the fill colour.


def _identity(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return image


def _autocontrast(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return ImageOps.equalize(image)


def _brightness(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + sign * 0.9 * strength)


def _sharpness(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + sign * 0.9 * strength)


def _shear_x(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return affine(image, ((1.0, sign * 0.3 * strength), (0.0, 1.0)), fill)


def _shear_y(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return affine(image, ((1.0, 0.0), (sign * 0.3 * strength, 1.0)), fill)


def _translate_x(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return _shift(image, round(sign * 0.2 * strength * image.width), 0, fill)


def _translate_y(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return _shift(image, 0, round(sign * 0.2 * strength * image.height), fill)


def _rotate(image: Image.Image, strength: float, sign: int, fill: Color) -> Image.Image:
    return image.rotate(sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def _shift(image: Image.Image, x: int, y: int, fill: Color) -> Image.Image:
    canvas = Image.new("RGB", image.size, fill)
    canvas.paste(image, (x, y))
    return canvas


OPERATIONS: dict[str, Callable[[Image.Image, float, int, Color], Image.Image]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "equalize": _equalize,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}


@dataclass(frozen=True)
class R2D2Augmentation:
    """The paper's augmentation: random resized crop, horizontal flip, RandAugment.

    The list of operations, their number and the magnitude are the authors'. What a magnitude means was not
    published as a formula; here, with s = magnitude / 10 and a random sign (at magnitude 5 in brackets):

    | operation | effect |
    |---|---|
    | brightness, sharpness | factor 1 ± 0.9 s (0.55 or 1.45) |
    | shear_x, shear_y | slope ± 0.3 s (0.15), about the centre |
    | translate_x, translate_y | ± 0.2 s of the side (10 %) |
    | rotate | ± 30 s degrees (15) |
    | identity, autocontrast, equalize | no magnitude |

    Attributes:
        size: side of the square output in pixels.
        scale: share of the area that the crop keeps, uniform.
        ratio: aspect ratio of the crop relative to a square, log-uniform.
        flip: probability of a horizontal flip.
        num_ops: operations drawn per picture, with replacement.
        magnitude: 0 to 10.
        operations: names of `OPERATIONS`.
        op_probability: probability with which a drawn operation is applied.
        fill: colour that geometric operations uncover.

    Raises:
        ValueError: an unknown operation, or a value out of its range.
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    num_ops: int = 2
    magnitude: float = 5
    operations: Sequence[str] = tuple(OPERATIONS)
    op_probability: float = 1.0
    fill: Color = MEAN_COLOR

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise ValueError(f"unknown operations {unknown}; there are {list(OPERATIONS)}")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude is {self.magnitude}; it lies between 0 and {MAX_MAGNITUDE}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; use 0 < low <= high <= 1")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        image = random_resized_crop(image, rng, self.size, self.scale, self.ratio)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if not self.operations:
            return image
        strength = self.magnitude / MAX_MAGNITUDE
        for pick in rng.integers(len(self.operations), size=self.num_ops):
            sign = 1 if rng.random() < 0.5 else -1
            if self.op_probability >= 1 or rng.random() < self.op_probability:
                image = OPERATIONS[self.operations[pick]](image, strength, sign, self.fill)
        return image


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random part of the picture, bicubic to `size` x `size`. If ten draws do not fit into the picture, the
    largest centred part of allowed aspect ratio."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        crop_width = max(1, min(width, round(height * aspect)))
        crop_height = max(1, min(height, round(width / aspect)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)

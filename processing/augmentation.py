"""Augmentation of pictures with PIL alone. Every random choice comes from the generator that is handed in.

An augmentation is a callable `augment(image, rng) -> image` on RGB `PIL.Image`s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

Colour = tuple[int, int, int]
# CLIP's mean: what geometric operations uncover is (about) zero after normalisation
MEAN_COLOUR: Colour = (123, 117, 104)
WHITE: Colour = (255, 255, 255)
MAX_MAGNITUDE = 10
_LUMA = np.array([0.299, 0.587, 0.114])


class Augmentation(Protocol):
    """What the data layer calls: one RGB picture in, one out, every choice from `rng`."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image: ...


def affine(
    image: Image.Image,
    matrix: Sequence[Sequence[float]],
    fill: Colour = MEAN_COLOUR,
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


def _identity(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return image


def _autocontrast(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return ImageOps.equalize(image)


def _brightness(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + sign * 0.9 * strength)


def _sharpness(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + sign * 0.9 * strength)


def _shear_x(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return affine(image, ((1.0, sign * 0.3 * strength), (0.0, 1.0)), fill)


def _shear_y(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return affine(image, ((1.0, 0.0), (sign * 0.3 * strength, 1.0)), fill)


def _translate_x(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _shift(image, round(sign * 0.2 * strength * image.width), 0, fill)


def _translate_y(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _shift(image, 0, round(sign * 0.2 * strength * image.height), fill)


def _rotate(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return image.rotate(sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def _shift(image: Image.Image, x: int, y: int, fill: Colour) -> Image.Image:
    canvas = Image.new("RGB", image.size, fill)
    canvas.paste(image, (x, y))
    return canvas


OPERATIONS: dict[str, Callable[[Image.Image, float, int, Colour], Image.Image]] = {
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
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    num_ops: int = 2
    magnitude: float = 5
    operations: Sequence[str] = tuple(OPERATIONS)
    op_probability: float = 1.0
    fill: Colour = MEAN_COLOUR

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


# -- drawings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoAugmentation:
    """Affine and colour changes for small pictures such as emoji: one resampling, one colour matrix.

    Every part can be switched off by its 0 or its identity. Geometric changes compose into one transform, colour
    changes into one 3 x 4 matrix, so a 72 px picture costs a fraction of a millisecond.

    Attributes:
        size: side that pictures are squashed to first; None keeps their size. Set it for photographs.
        flip: probability of a horizontal flip.
        rotate: degrees, uniform in ± rotate.
        translate: share of the side, uniform in ± translate, both axes.
        scale: zoom, log-uniform; above 1 enlarges.
        shear: slope along x, uniform in ± shear.
        squeeze: largest ratio of unequal zoom along x and y, log-uniform; 0.1 gives up to 1.1.
        brightness, contrast, saturation: factors 1 ± value, uniform. Contrast is about the picture's mean grey.
        grayscale: probability of dropping colour.
        shuffle_channels: probability of a random order of the colour channels.
        invert: probability of inverting the colours.
        blur: probability of a Gaussian blur with a radius uniform in `blur_radius`.
        erase: probability of covering a rectangle of `erase_area` (share of the picture) with noise-free colour.
        fill: colour that geometric changes uncover.
        resample: "bilinear" or "bicubic" for the geometric changes; bicubic costs twice as much, and drawings that
            are scaled down afterwards do not show it.
    """

    size: int | None = None
    flip: float = 0.5
    rotate: float = 15.0
    translate: float = 0.08
    scale: tuple[float, float] = (0.8, 1.15)
    shear: float = 0.1
    squeeze: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.0
    saturation: float = 0.0
    grayscale: float = 0.0
    shuffle_channels: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    blur_radius: tuple[float, float] = (0.3, 1.0)
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)
    fill: Colour = WHITE
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        # all draws are made in one order whatever is switched on: options do not disturb one another
        draw = rng.random(24).tolist()
        if self.size is not None and image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        image = self._move(image, draw)
        image = self._recolour(image, draw, rng)
        if draw[14] < self.blur:
            low, high = self.blur_radius
            image = image.filter(ImageFilter.GaussianBlur(float(low + (high - low) * draw[15])))
        if draw[16] < self.erase:
            image = self._erase(image, draw)
        if draw[23] < self.invert:
            image = ImageChops.invert(image)
        return image

    def _move(self, image: Image.Image, draw: Sequence[float]) -> Image.Image:
        angle = math.radians(self.rotate * (2 * draw[1] - 1))
        right = self.translate * (2 * draw[2] - 1) * image.width
        down = self.translate * (2 * draw[3] - 1) * image.height
        zoom = _log_uniform(self.scale, draw[4])
        slope = self.shear * (2 * draw[5] - 1)
        stretch = math.exp(math.log1p(self.squeeze) * (2 * draw[6] - 1) / 2)
        mirror = -1.0 if draw[0] < self.flip else 1.0
        if not (angle or right or down or slope) and zoom == 1 and stretch == 1:
            return image if mirror > 0 else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = zoom * stretch * mirror, zoom / stretch
        # rotation @ shear @ diag(x, y)
        matrix = ((cos * x, (cos * slope - sin) * y, right), (sin * x, (sin * slope + cos) * y, down))
        return affine(image, matrix, self.fill, Image.Resampling[self.resample.upper()])

    def _recolour(self, image: Image.Image, draw: Sequence[float], rng: np.random.Generator) -> Image.Image:
        gray = draw[10] < self.grayscale
        shuffled = draw[11] < self.shuffle_channels
        if not (self.brightness or self.contrast or self.saturation or gray or shuffled):
            return image
        colour, shift = np.eye(3), np.zeros(3)
        if shuffled:
            colour = colour[list(rng.permutation(3))]
        saturation = 0.0 if gray else 1 + self.saturation * (2 * draw[9] - 1)
        if saturation != 1:
            colour = (saturation * np.eye(3) + (1 - saturation) * _LUMA) @ colour
        if self.contrast:
            factor = 1 + self.contrast * (2 * draw[8] - 1)
            mean = image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
            colour, shift = factor * colour, np.full(3, (1 - factor) * mean)
        if self.brightness:
            factor = 1 + self.brightness * (2 * draw[7] - 1)
            colour, shift = factor * colour, factor * shift
        return image.convert("RGB", tuple(np.column_stack([colour, shift]).ravel().tolist()))

    def _erase(self, image: Image.Image, draw: Sequence[float]) -> Image.Image:
        width, height = image.size
        low, high = self.erase_area
        area = (low + (high - low) * draw[17]) * width * height
        aspect = _log_uniform((0.5, 2.0), draw[18])
        w = max(1, min(width, round(math.sqrt(area * aspect))))
        h = max(1, min(height, round(math.sqrt(area / aspect))))
        left, top = int(draw[19] * (width - w + 1)), int(draw[20] * (height - h + 1))
        colour = self.fill if draw[21] < 0.5 else tuple(int(255 * c) for c in (draw[21] * 2 - 1, draw[22], 0.5))
        image = image.copy()
        image.paste(colour, (left, top, left + w, top + h))
        return image


@dataclass(frozen=True)
class Compose:
    """Augmentations one after another, all drawing from the same generator."""

    steps: tuple[Augmentation, ...]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for step in self.steps:
            image = step(image, rng)
        return image


def _log_uniform(bounds: tuple[float, float], draw: float) -> float:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return math.exp(low + (high - low) * draw)

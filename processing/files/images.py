"""Which files are pictures, and how they are opened: all readers of this package use what is here, and nothing else."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, TypeVar

from ...model.images_r2d2 import (
    ImageReadError,
    ImageSource,
    check_image,
    describe_source,
    open_image,
    open_regular,
    opening_of,
    to_rgb,
    turns_upright,
    upright_rgb,
)

if TYPE_CHECKING:
    from ...model.processing_r2d2 import R2D2Processor

_Pairs = TypeVar("_Pairs")
#: Suffixes of the files that are taken for pictures, in lower case.
IMAGE_SUFFIXES = frozenset(
    "." + suffix
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "jpx", "avif", "heic", "heif", "hif"),
    )
)


def as_processor_reads(pairs: _Pairs, processor: object) -> _Pairs:
    """A set of pictures or pairs that opens its pictures as a processor takes them: upright, or as they are stored, and
    transparent ones on the processor's background, where the set has none of its own.

    Args:
        pairs: with attributes `exif_transpose` and `background`, or in `.pairs` a set with them; any other is returned
            as it is.

    Returns:
        the set itself where it does so already, else a shallow copy.
    """
    attributes, wanted = getattr(pairs, "__dict__", {}), opening_of(processor)
    if "exif_transpose" in attributes:
        if attributes.get("background") is not None:
            del wanted["background"]
    elif "pairs" in attributes:
        wanted = {"pairs": as_processor_reads(attributes["pairs"], processor)}
    else:
        return pairs
    if all(attributes.get(name) is value for name, value in wanted.items()):
        return pairs
    other = copy(pairs)
    vars(other).update(wanted)
    return other


def tower_size(processor: R2D2Processor) -> tuple[tuple[int, int], int | None]:
    """(width, height) of the pictures that a processor makes, and the length that it first brings the shorter side to
    before it crops the centre; None: it squashes.

    Raises:
        ValueError: it does neither.
    """
    image_processor = processor.image_processor
    size, crop = image_processor.size, getattr(image_processor, "crop_size", None) or {}
    crops = getattr(image_processor, "do_center_crop", False)
    squashed = (size.get("width") or 0, size.get("height") or 0)
    # a crop of the size that it squashes to, as Chinese-CLIP's processors may have it, changes nothing
    if all(squashed) and (not crops or squashed == (crop.get("width"), crop.get("height"))):
        return squashed, None
    shortest = size.get("shortest_edge") if crops else None
    if shortest and 0 < crop.get("width", 0) <= shortest >= crop.get("height", 0) > 0:
        return (crop["width"], crop["height"]), shortest
    raise ValueError(
        f"the image processor neither squashes to one size nor crops the centre out of the shorter side (size "
        f"{dict(size)}, do_center_crop {crops}, crop_size {dict(crop)}): R2D2Processor.build makes one that squashes, "
        "WukongProcessor.build one that crops as Wukong does"
    )


__all__ = [
    "IMAGE_SUFFIXES",
    "ImageReadError",
    "ImageSource",
    "as_processor_reads",
    "check_image",
    "describe_source",
    "open_image",
    "open_regular",
    "opening_of",
    "to_rgb",
    "tower_size",
    "turns_upright",
    "upright_rgb",
]

"""Which files are pictures, and how they are opened: all readers of this package use what is here, and nothing else."""

from __future__ import annotations

from copy import copy
from typing import TypeVar

from ...model.images_r2d2 import (
    ImageReadError,
    ImageSource,
    check_image,
    describe_source,
    open_image,
    open_regular,
    to_rgb,
    turns_upright,
    upright_rgb,
)

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
    """A set of pictures or pairs that opens its pictures as a processor takes them: upright, or as they are stored.

    Args:
        pairs: with an attribute `exif_transpose`, or in `.pairs` a set with one; any other is returned as it is.

    Returns:
        the set itself where it does so already, else a shallow copy.
    """
    attributes, upright = getattr(pairs, "__dict__", {}), turns_upright(processor)
    if "exif_transpose" in attributes:
        name, value = "exif_transpose", upright
    elif "pairs" in attributes:
        name, value = "pairs", as_processor_reads(attributes["pairs"], processor)
    else:
        return pairs
    if attributes[name] is value:
        return pairs
    other = copy(pairs)
    setattr(other, name, value)
    return other


__all__ = [
    "IMAGE_SUFFIXES",
    "ImageReadError",
    "ImageSource",
    "as_processor_reads",
    "check_image",
    "describe_source",
    "open_image",
    "open_regular",
    "to_rgb",
    "turns_upright",
    "upright_rgb",
]

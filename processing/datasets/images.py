"""Which files are pictures, and how they are opened: all readers of this package use what is here, and nothing else."""

from __future__ import annotations

from ..images_r2d2 import ImageReadError, ImageSource, check_image, describe_source, open_image, open_regular, to_rgb

#: Suffixes of the files that are taken for pictures, in lower case.
IMAGE_SUFFIXES = frozenset(
    "." + suffix
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "jpx", "avif", "heic", "heif", "hif"),
    )
)

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageReadError",
    "ImageSource",
    "check_image",
    "describe_source",
    "open_image",
    "open_regular",
    "to_rgb",
]

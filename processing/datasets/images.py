"""Opening pictures: whatever the file holds becomes 8-bit RGB, or an error that names it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageColor, ImageOps

from ..processing_r2d2 import to_rgb as any_mode_to_rgb

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image

# PIL clips these to 255 on conversion; they are rescaled here.
_WIDE_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


class ImageReadError(ValueError):
    """A picture that cannot be read: missing, truncated, not an image, or too large. Names the file."""


def describe_source(source: object) -> str:
    """A name for error messages: the path, the file's name, or what kind of object it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    if isinstance(name, str | os.PathLike) and os.fspath(name):
        return os.fspath(name)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return f"<{type(source).__name__}>"


def open_image(
    source: ImageSource,
    *,
    background: str | tuple[int, int, int] | None = None,
    name: str | None = None,
    max_pixels: int | None = None,
    exif_transpose: bool = False,
) -> Image.Image:
    """Read and fully decode one picture as an RGB `PIL.Image`.

    Every mode has one defined result. 8-bit modes (grayscale, palette, RGBA, LA, CMYK, ...) go through
    `PIL.Image.convert("RGB")`, as in the authors' preprocessing: alpha is dropped, the colours under it
    stay. 16-bit pictures are rescaled (65535 becomes 255), not clipped. 32-bit integer pictures count as
    16-bit if all values lie in 0..65535, else their range is stretched over 0..255; float pictures are taken
    as 0..1 if no value is outside it, else as 0..255, else stretched. Animations give their first frame.

    Args:
        source: a path, the file's bytes, a binary file object, or a PIL image (returned as a copy in RGB).
        background: composite transparent pictures on this colour instead of dropping alpha.
        name: what error messages call the picture; default the path.
        max_pixels: largest allowed width x height; default `PIL.Image.MAX_IMAGE_PIXELS`, where PIL itself
            only warns.
        exif_transpose: rotate as the EXIF orientation says. The authors do not.

    Raises:
        ImageReadError: missing or truncated file, not an image, too many pixels.
    """
    label = name or describe_source(source)
    try:
        with warnings.catch_warnings():
            # the limit is enforced below, as an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(source) as image:
                _check_size(image, label, max_pixels)
                image.load()
                if exif_transpose:
                    image = ImageOps.exif_transpose(image)
                return to_rgb(image, background=background)
    except ImageReadError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise nearly any type on broken files
        raise ImageReadError(f"{label}: {_reason(error)}") from error


def check_image(source: ImageSource, *, name: str | None = None, max_pixels: int | None = None) -> None:
    """Read the header only: a cheap check that `source` is a picture of allowed size.

    Costs no decoding, so truncated pixel data pass; `open_image` finds those.

    Raises:
        ImageReadError: as `open_image`.
    """
    label = name or describe_source(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(source) as image:
                _check_size(image, label, max_pixels)
    except ImageReadError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise ImageReadError(f"{label}: {_reason(error)}") from error


def to_rgb(image: Image.Image, *, background: str | tuple[int, int, int] | None = None) -> Image.Image:
    """Convert any PIL mode to RGB, always as a new image; see `open_image` for the rules."""
    mode = image.mode
    if mode == "RGB":
        if background is not None and "transparency" in image.info:
            return _composite(image.convert("RGBA"), background)
        return image.copy()
    if mode in _WIDE_MODES:
        return any_mode_to_rgb(image)
    if mode == "RGBa":
        image = image.convert("RGBA")
    elif mode == "La":
        image = image.convert("LA")
    if background is not None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        return _composite(image.convert("RGBA"), background)
    if mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # the same colours as convert("RGB"), without PIL's warning
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    """The picture, undecoded; a file that was opened here is closed at the end, also after an error."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, bytes | bytearray | memoryview):
        yield Image.open(io.BytesIO(source))
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            yield Image.open(file)
    else:
        yield Image.open(source)


def _check_size(image: Image.Image, label: str, max_pixels: int | None) -> None:
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageReadError(f"{label}: the picture is empty ({width} x {height})")
    if limit is not None and width * height > limit:
        raise ImageReadError(
            f"{label}: {width} x {height} pixels are over the limit of {limit} (a decompression bomb?)"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a format that PIL knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (a decompression bomb?): {error}"
    return f"cannot be decoded: {error or type(error).__name__}"


def _composite(image: Image.Image, background: str | tuple[int, int, int]) -> Image.Image:
    colour = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
    canvas = Image.new("RGB", image.size, colour[:3])
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas

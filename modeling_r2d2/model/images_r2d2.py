"""Opening pictures: whatever a file holds becomes upright 8-bit RGB, or an error that names it.

This file travels to the Hub beside processors and saved pipelines, so it imports only numpy and PIL.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageColor
from PIL.IcoImagePlugin import IcoImageFile

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image

#: PIL's formats that are read (its JPEG reads MPO too). No other decoder ever sees a file: that of EPS, for one,
#: starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF", "HEIF")
#: Width x height that is read where nothing else is asked for: photographs of 108 megapixels, and some more.
MAX_PIXELS = 2**27
#: The largest file that is read.
MAX_FILE_BYTES = 2**30

_PLUGINS = ("Avif", "Bmp", "Gif", "Ico", "Jpeg2K", "Jpeg", "Png", "Ppm", "Tiff", "WebP")
_PIL_MAX_PIXELS = 1024**3 // 4 // 3  # PIL.Image.MAX_IMAGE_PIXELS until somebody sets it
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_ORIENTATION = 0x0112
# EXIF 2.32, tag Orientation: how a stored picture is turned upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 1 << 20
# Bytes a pixel while a picture is read, measured: decoded (4 in RGB), a copy of it, and what the decoder takes.
_BYTES = {"WEBP": 16, "AVIF": 11, "JPEG2000": 20, "HEIF": 12}
_MOST_BYTES = 12  # a pixel of the limit: formats that take more are read up to accordingly fewer pixels


class ImageReadError(ValueError):
    """A picture that cannot be read: missing, truncated, not an image, or too large. Names the file."""


class _Refused(OSError):
    """What is wrong with a picture's file, without its name."""


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
    exif_transpose: bool = True,
) -> Image.Image:
    """Read and fully decode one picture as an upright RGB `PIL.Image` without metadata.

    Every mode has one defined result. 8-bit modes (grayscale, palette, RGBA, LA, CMYK, ...) go through
    `PIL.Image.convert("RGB")`, as in the authors' preprocessing: without a `background` alpha is dropped, the colours
    under it stay. 16-bit pictures are rescaled (65535 becomes 255), not clipped. 32-bit integer pictures count as
    16-bit if all values lie in 0..65535, else their range is stretched over 0..255; float pictures are taken
    as 0..1 if no value is outside it, else as 0..255, else stretched. Animations give their first frame.

    Only regular files are opened, only the formats `FORMATS`, and the bounds hold before anything is decoded; memory
    stays below 12 bytes for each of `max_pixels`.

    Args:
        source: a path, the file's bytes, a binary file object, or a PIL image (returned as a copy in RGB).
        background: composite transparent pictures on this colour instead of dropping alpha.
        name: what error messages call the picture; default the path.
        max_pixels: largest allowed width x height; default `PIL.Image.MAX_IMAGE_PIXELS` where that was set, else
            `MAX_PIXELS`; of WebP 3/4 of it and of JPEG 2000 3/5, whose decoders take more memory. PIL itself refuses
            more than twice its `MAX_IMAGE_PIXELS`.
        exif_transpose: turn the picture upright as its EXIF orientation says. False leaves it as it is stored,
            which is the authors' way (but PIL itself turns TIFF, and libheif HEIC).

    Raises:
        ImageReadError: missing or truncated file, no regular file, not an image of a known format, too large,
            values that are not finite.
    """
    with _named_errors(name or describe_source(source)):
        with _opened(source, max_pixels) as image:
            image.load()
            turn = _turn(image) if exif_transpose else None
            result = to_rgb(image, background=background)
        del image  # the decoded picture goes before there is another copy
        if turn is not None:
            result = result.transpose(turn)
        result.info = {}  # an orientation, heeded or not, concerns nobody any more
        return result


def check_image(source: ImageSource, *, name: str | None = None, max_pixels: int | None = None) -> None:
    """Read the header only: a cheap check that `source` is a picture of allowed size.

    Costs no decoding, so truncated pixel data pass; `open_image` finds those.

    Raises:
        ImageReadError: as `open_image`.
    """
    with _named_errors(name or describe_source(source)), _opened(source, max_pixels):
        pass


def upright_rgb(
    image: Image.Image, *, background: str | tuple[int, int, int] | None = None, exif_transpose: bool = True
) -> Image.Image:
    """`open_image` of a picture that is in memory already: itself, not a copy, where it is upright, RGB and opaque.

    Raises:
        ValueError: values that are not finite.
        OSError: its file is truncated.
    """
    image.load()
    turn = _turn(image) if exif_transpose else None
    plain = image.mode == "RGB" and "transparency" not in image.info
    rgb = image if plain else to_rgb(image, background=background)
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info = {}  # else the next one would turn it again
    return rgb


def opening_of(processor: object) -> dict[str, Any]:
    """How a processor, or an image processor, takes pictures, as options of `open_image`: `exif_transpose` (see
    `turns_upright`), and the `background` of its image processor that transparent ones are put on, None where it has
    none. Both are saved with its settings."""
    images = getattr(processor, "image_processor", processor)
    return {"exif_transpose": turns_upright(processor), "background": getattr(images, "background", None)}


def turns_upright(processor: object) -> bool:
    """Whether a processor, or an image processor, takes pictures upright as their EXIF data say. That is so unless the
    image processor has `exif_transpose` False, which is saved with its settings."""
    return bool(getattr(getattr(processor, "image_processor", processor), "exif_transpose", True))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded picture upright; None where its EXIF data do not say so, or are broken."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # PIL raises nearly any type on broken EXIF data, and the picture is one without them
        return None


def to_rgb(image: Image.Image, *, background: str | tuple[int, int, int] | None = None) -> Image.Image:
    """Convert any PIL mode to RGB, always as a new image and not turned; see `open_image` for the rules.

    Raises:
        ValueError: values that are not finite.
    """
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return _wide_to_rgb(image)
    if mode == "RGBa":
        image = image.convert("RGBA")
    elif mode == "La":
        image = image.convert("LA")
    if background is not None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        return _composite(image.convert("RGBA"), background)
    if mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # the same colours as convert("RGB"), without PIL's warning
        image = image.convert("RGBA")
    rgb = image.copy() if mode == "RGB" else image.convert("RGB")
    rgb.info.pop("transparency", None)  # a color that whoever reads on would take for transparent
    return rgb


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file of pictures, to read: a regular file alone (or a link to one), never a pipe, socket or device.

    Raises:
        OSError: as `open`, and for everything that is no regular file.
    """
    _refuse_special(os.stat(path).st_mode)  # opening a device alone may have effects
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _refuse_special(os.fstat(descriptor).st_mode)  # it may have been replaced
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_special(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise _Refused("is a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise _Refused("is no regular file but a pipe, a socket or a device")


@contextmanager
def _named_errors(label: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # the limit is enforced by `_check_size`, as an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise nearly any type on broken files
        raise ImageReadError(f"{label}: {_reason(error)}") from error


@contextmanager
def _opened(source: ImageSource, max_pixels: int | None) -> Iterator[Image.Image]:
    """The picture, undecoded; a file that was opened here is closed at the end, also after an error."""
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels)  # decoding may be still to come
        yield source
        return
    if isinstance(source, bytes | bytearray | memoryview):
        opened: AbstractContextManager[BinaryIO] = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        opened = own_file = open_regular(source)
        if os.fstat(own_file.fileno()).st_size > MAX_FILE_BYTES:
            own_file.close()
            raise _Refused(f"is larger than {MAX_FILE_BYTES} bytes")
    elif hasattr(source, "read"):
        opened = nullcontext(source)
    else:
        raise _Refused("is neither a path, nor bytes, nor a file, nor a PIL image")
    with opened as file:
        image = _identified(file)
        _check_size(image.size, max_pixels, _BYTES.get(image.format or "", 8))
        if isinstance(
            image, IcoImageFile
        ):  # the picture inside has a size of its own, which the list of sizes may belie
            _check_size(image.ico.getimage(image.size).size, max_pixels)
        yield image


def _identified(file: BinaryIO) -> Image.Image:
    try:
        file.seek(0)
    except (AttributeError, io.UnsupportedOperation):
        file = io.BytesIO(file.read(MAX_FILE_BYTES))
    head = file.read(12)
    if not head:
        raise _Refused("is empty (0 bytes)")
    heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    missing = heif and not _register_heif()
    try:
        return Image.open(file, formats=[format for format in FORMATS if format in _decoders()])
    except Image.UnidentifiedImageError:
        if missing:
            raise _Refused("a HEIC picture, which needs pillow-heif: pip install 'modeling-r2d2[heif]'") from None
        if begun := _begun(head):
            raise _Refused(f"cannot be decoded: a {begun} file, damaged or of a kind that is not read") from None
        raise


def _begun(head: bytes) -> str | None:
    """The format whose decoder takes the first bytes for its own, whatever follows them."""
    accepts = ((format, _decoders()[format][1]) for format in FORMATS if format in _decoders())
    return next((format for format, accept in accepts if accept is not None and accept(head) is True), None)


@cache
def _decoders() -> dict:
    """PIL's, with those that are needed."""
    for plugin in _PLUGINS:
        with suppress(ImportError):  # AVIF came with Pillow 11.3
            import_module(f"PIL.{plugin}ImagePlugin")
    return Image.OPEN


def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check_size(size: tuple[int, int], max_pixels: int | None, bytes_per_pixel: int = 8) -> None:
    limit = max_pixels
    if limit is None:
        limit = MAX_PIXELS if Image.MAX_IMAGE_PIXELS == _PIL_MAX_PIXELS else Image.MAX_IMAGE_PIXELS
    width, height = size
    if width == 0 or height == 0:
        raise _Refused(f"the picture is empty ({width} x {height})")
    if limit is None:
        return
    limit = min(limit, limit * _MOST_BYTES // bytes_per_pixel)
    if width * height > limit:
        raise _Refused(
            f"{width} x {height} pixels are over the limit of {limit} (a decompression bomb?); for more, set "
            "PIL.Image.MAX_IMAGE_PIXELS, on the command line by --max-pixels"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a picture in a format that is read ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (a decompression bomb?): {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened: {error.strerror}"
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "no such file: its name holds a NUL character"
    return f"cannot be decoded: {error or type(error).__name__}"


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    """16 and 32 bits, or floats, to 8; a band of rows at a time, so that memory holds no copy in floats."""
    width, height = image.size
    rows = max(_BAND_PIXELS // width, 1)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _value_range(image, boxes)
    scale = 255 / (high - low) if high > low else 0.0
    result = Image.new("RGB", image.size)
    for box in boxes:
        values = np.asarray(image.crop(box)).astype(np.float64)
        result.paste(Image.fromarray(np.rint((values - low) * scale).astype(np.uint8)).convert("RGB"), box)
    return result


def _value_range(image: Image.Image, boxes: list[tuple[int, int, int, int]]) -> tuple[float, float]:
    """What becomes 0 and 255."""
    bands = (np.asarray(image.crop(box)) for box in boxes)
    ends = np.array([(band.min(), band.max()) for band in bands], dtype=np.float64)
    low, high = float(ends.min()), float(ends.max())  # NaN where there is one
    if not np.isfinite([low, high]).all():
        raise ValueError("holds values that are not finite (NaN or infinite)")
    usual = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    return next(((0.0, limit) for limit in usual if low >= 0 and high <= limit), (low, high))


def _composite(image: Image.Image, background: str | tuple[int, int, int]) -> Image.Image:
    color = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
    canvas = Image.new("RGB", image.size, color[:3])
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas

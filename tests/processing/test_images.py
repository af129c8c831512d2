"""Every kind of picture has one defined RGB result, or an error that names it; sizes against recorded arrays."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_r2d2.processing.files.images import ImageReadError, check_image, open_image, to_rgb
from tests.helpers import tiny_processor

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "preprocess"
NAMES = ("landscape", "portrait", "gray", "rgba", "small")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photograph(size=(30, 20)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [32, 56])
@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_equals_the_authors(name, size):
    processor = tiny_processor(image_size=size)
    expected = np.load(GOLDEN / "pixel_values.npz")[f"{name}_{size}"]
    pixels = processor(images=[open_image(GOLDEN / f"{name}.png")], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_resize_equals_the_authors(name):
    expected = np.load(GOLDEN / "pixel_values.npz")[f"{name}_224_uint8"].astype(int)
    image = open_image(GOLDEN / f"{name}.png")
    # Pillow of the authors' time resized along x first; today's may take y first, which rounds differently
    x_first = image.resize((224, image.height), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(x_first), expected)
    at_once = image.resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(at_once) - expected).max() <= 2


def test_sources_path_bytes_file_and_image(tmp_path):
    image = photograph()
    path = tmp_path / "图.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), image):
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(image))
    assert open_image(image) is not image


def test_alpha_is_dropped_as_the_authors_do_or_composited():
    rgba = Image.new("RGBA", (2, 1), (200, 10, 20, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    assert open_image(encoded(rgba)).getpixel((0, 0)) == (200, 10, 20)
    on_white = open_image(encoded(rgba), background="white")
    assert on_white.getpixel((0, 0)) == (255, 255, 255)
    assert on_white.getpixel((1, 0)) == (127, 127, 127)
    assert open_image(encoded(rgba), background=(0, 0, 255)).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_8_bit_mode_gives_rgb(mode):
    for background in (None, "white"):
        image = to_rgb(Image.new(mode, (4, 3)), background=background)
        assert image.mode == "RGB"
        assert image.size == (4, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_8_bit_modes_are_converted_by_pil(mode):
    image = photograph().convert("RGBA").convert(mode) if mode != "P" else photograph().quantize(16)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255])])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    data = encoded(image, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = open_image(data)
        white = open_image(data, background="white")
    assert [plain.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    if isinstance(transparency, bytes):
        assert white.getpixel((0, 0)) == (255, 255, 255)
        assert white.getpixel((2, 0)) == (0, 0, 255)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_rescaled_not_clipped(format):
    values = np.array([[0, 128, 257, 25700, 65535]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values), format))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_32_bit_and_float_are_rescaled():
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 255]
    deeper = Image.fromarray(np.array([[-100, 0, 100_000]], dtype=np.int32))
    assert np.asarray(to_rgb(deeper))[0, [0, 2], 0].tolist() == [0, 255]
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(to_rgb(unit))[0, :, 0].tolist() == [0, 128, 255]
    byte = Image.fromarray(np.array([[0.0, 99.6]], dtype=np.float32))
    assert np.asarray(to_rgb(byte))[0, :, 0].tolist() == [0, 100]
    wide = Image.fromarray(np.array([[-5.0, 1000.0]], dtype=np.float32))
    assert np.asarray(to_rgb(wide))[0, :, 0].tolist() == [0, 255]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        red, green, blue = open_image(data).getpixel((4, 4))
        assert red > 240
        assert green < 15
        assert blue < 15


def test_exif_orientation_is_an_option():
    image = photograph((30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif)
    assert open_image(data).size == (20, 30)
    assert open_image(data, exif_transpose=False).size == (30, 20)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_truncated_files_are_named(tmp_path, format):
    data = encoded(photograph((80, 60)), format)
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageReadError, match=r"half\.img"):
        open_image(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"\xff\xd8\xff"])
def test_what_is_no_image(tmp_path, data):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    for read in (open_image, check_image):
        with pytest.raises(ImageReadError, match=r"x\.jpg"):
            read(path)


def test_missing_file_folder_and_wrong_object(tmp_path):
    with pytest.raises(ImageReadError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageReadError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(ImageReadError, match="int"):
        open_image(7)
    with pytest.raises(ImageReadError, match="line 3 of my list"):
        open_image(b"?", name="line 3 of my list")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_gives_a_image_or_our_error():
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        data = np.frombuffer(encoded(photograph(), format), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(len(data), size=6)] = rng.integers(256, size=6)
            with contextlib.suppress(ImageReadError):
                assert open_image(damaged.tobytes()).mode == "RGB"


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_errors_without_decoding(tmp_path, side):
    """PIL itself only warns up to twice its limit."""
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (open_image, check_image):
            with pytest.raises(ImageReadError, match=r"bomb\.png.*bomb"):
                read(path)


def test_own_limit_of_pixels():
    data = encoded(photograph((30, 20)))
    check_image(data, max_pixels=600)
    with pytest.raises(ImageReadError, match="30 x 20"):
        check_image(data, max_pixels=599)


def test_check_image_reads_headers_only(tmp_path):
    path = tmp_path / "half.png"
    data = encoded(photograph((80, 60)))
    path.write_bytes(data[: len(data) // 2])
    check_image(path)

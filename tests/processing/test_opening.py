"""What a picture's file may be, and which way up it comes out: hostile files, phones' files, every orientation."""

import io
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_r2d2.model import images_r2d2
from modeling_r2d2.model import images_r2d2 as travelling
from modeling_r2d2.model.pipeline_inputs import read_image
from modeling_r2d2.processing.files.images import ImageReadError, check_image, open_image
from tests.helpers import tiny_processor

ORIENTATION = 0x0112
# corners of a picture, clockwise from the top left, and where EXIF's orientations 1 to 8 store them
CORNERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
STORED = {
    1: [0, 1, 2, 3],
    2: [1, 0, 3, 2],
    3: [2, 3, 0, 1],
    4: [3, 2, 1, 0],
    5: [0, 3, 2, 1],
    6: [1, 2, 3, 0],
    7: [2, 1, 0, 3],
    8: [3, 0, 1, 2],
}


def four_corners(order: list[int], wide: bool) -> Image.Image:
    """A picture of 48 x 32 (or 32 x 48) pixels with a colour of CORNERS in each quarter."""
    width, height = (48, 32) if wide else (32, 48)
    image = Image.new("RGB", (width, height))
    for place, corner in zip([(0, 0), (1, 0), (1, 1), (0, 1)], order, strict=True):
        box = (place[0] * width // 2, place[1] * height // 2)
        image.paste(CORNERS[corner], (*box, box[0] + width // 2, box[1] + height // 2))
    return image


def quarters(image: Image.Image) -> list[int]:
    """Which of CORNERS lies in each quarter, clockwise from the top left."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    points = [(8, 8), (8, width - 8), (height - 8, width - 8), (height - 8, 8)]
    return [int(np.argmin([np.abs(pixels[point] - color).sum() for color in CORNERS])) for point in points]


def photograph(path: Path, orientation: int, **options) -> Path:
    """A picture whose upright view is 48 x 32 with CORNERS in order, stored as a camera would."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    four_corners(STORED[orientation], wide=orientation < 5).save(path, exif=exif.tobytes(), **options)
    return path


def eps(path: Path) -> Path:
    """A PostScript program that would write a file if it were run."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "EPS")
    path.write_bytes(buffer.getvalue())
    return path


class TestUpright:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "mpo", "heic"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_of_every_format(self, tmp_path, suffix, orientation):
        if suffix == "heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        options = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]} if suffix == "mpo" else {}
        path = photograph(tmp_path / f"photo.{suffix}", orientation, **options)
        ways = {
            "path": open_image(path),
            "bytes": open_image(path.read_bytes()),
            "PIL image": open_image(Image.open(path)),
            "pipeline": read_image(str(path)),
        }
        for way, image in ways.items():
            assert image.size == (48, 32), way
            assert quarters(image) == [0, 1, 2, 3], way
            assert not image.getexif(), f"{way}: nobody turns it a second time"
        processor = tiny_processor()
        seen = processor(images=[Image.open(path), ways["path"]], return_tensors="pt")["pixel_values"]
        assert (seen[0] - seen[1]).abs().max() < 1e-6

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_nothing_is_turned_twice(self, tmp_path, suffix):
        with Image.open(photograph(tmp_path / f"photo.{suffix}", 8)) as image:
            once = images_r2d2.upright_rgb(image)
        assert quarters(images_r2d2.upright_rgb(once)) == quarters(open_image(once)) == [0, 1, 2, 3]

    def test_heic_without_its_library(self, tmp_path, monkeypatch):
        pytest.importorskip("pillow_heif").register_heif_opener()
        path = photograph(tmp_path / "IMG_0001.HEIC", 6, format="HEIF")
        monkeypatch.delitem(Image.OPEN, "HEIF")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        for read in (open_image, read_image):
            with pytest.raises(ValueError, match=r"IMG_0001\.HEIC: .*pip install 'modeling-r2d2\[heif\]'"):
                read(path)
        monkeypatch.undo()
        assert quarters(open_image(path)) == [0, 1, 2, 3]

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    def test_the_authors_way_leaves_it_as_it_is_stored(self, tmp_path, suffix):
        path = photograph(tmp_path / f"photo.{suffix}", 6)
        stored = open_image(path, exif_transpose=False)
        assert quarters(stored) == STORED[6]
        assert quarters(open_image(stored)) == STORED[6], "what was not turned is not turned later"

    @pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rub" * 9, b"\0" * 40])
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
    def test_broken_exif_data_do_not_fail_the_image(self, tmp_path, exif):
        path = tmp_path / "broken.jpg"
        four_corners([0, 1, 2, 3], wide=True).save(path, exif=exif)
        assert quarters(open_image(path)) == [0, 1, 2, 3]

    @pytest.mark.parametrize("value", [0, 9, 4242])
    def test_orientations_that_are_none(self, tmp_path, value):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        path = tmp_path / "odd.jpg"
        four_corners([0, 1, 2, 3], wide=True).save(path, exif=exif)
        assert quarters(open_image(path)) == [0, 1, 2, 3]

    @pytest.mark.parametrize("mode", ["L", "CMYK", "I;16", "RGBA", "P"])
    def test_every_mode_is_turned(self, tmp_path, mode):
        exif = Image.Exif()
        exif[ORIENTATION] = 8
        image = Image.new("RGB", (40, 20)).convert(mode) if mode != "I;16" else Image.new("I;16", (40, 20))
        path = tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}"
        image.save(path, exif=exif)
        assert open_image(path).size == (20, 40)
        assert open_image(path, background="white").size == (20, 40)


class TestWhatIsOpened:
    @pytest.mark.parametrize("suffix", ["eps", "jpg", "png", "tif"])
    def test_postscript_starts_nothing(self, tmp_path, monkeypatch, suffix):
        monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
        monkeypatch.setattr(os, "system", lambda *args: pytest.fail("a program was started"))
        path = eps(tmp_path / f"x.{suffix}")
        for read in (open_image, check_image, read_image, lambda path: open_image(path.read_bytes())):
            with pytest.raises(ValueError, match="not a picture in a format that is read"):
                read(path)

    @pytest.mark.parametrize("format", ["PCX", "TGA", "SGI", "IM", "PDF", "DDS", "MSP"])
    def test_other_decoders_are_not_asked(self, format):
        buffer = io.BytesIO()
        Image.new("1" if format == "MSP" else "RGB", (8, 8)).save(buffer, format)
        with pytest.raises(ImageReadError, match="not a picture in a format"):
            open_image(buffer.getvalue())

    def test_special_files(self, tmp_path, monkeypatch):
        os.mkfifo(tmp_path / "pipe.jpg")
        os.symlink("/dev/zero", tmp_path / "zero.png")
        os.symlink(tmp_path / "pipe.jpg", tmp_path / "link.jpg")
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jpg")
            for name in ("pipe.jpg", "zero.png", "link.jpg", "socket.jpg"):
                for read in (open_image, check_image, read_image):
                    done: list[str] = []
                    reading = threading.Thread(target=_note_error, args=(read, tmp_path / name, done), daemon=True)
                    reading.start()
                    reading.join(20)
                    assert done, f"{name}: hangs"
                    assert done[0].startswith(f"{tmp_path / name}: is no regular file")

    def test_replaced_between_looking_and_opening(self, tmp_path, monkeypatch):
        """What was a file when it was looked at is a pipe when it is opened: that neither waits nor reads."""
        file, pipe = tmp_path / "x.png", tmp_path / "pipe"
        Image.new("RGB", (8, 8)).save(file)
        os.mkfifo(pipe)
        real = os.open
        monkeypatch.setattr(os, "open", lambda path, flags, *rest: real(pipe, flags, *rest))
        with pytest.raises(ImageReadError, match="regular file"):
            open_image(file)

    def test_a_file_that_is_too_large(self, tmp_path):
        path = tmp_path / "sparse.png"
        with open(path, "wb") as file:
            file.truncate(2**40)
        with pytest.raises(ImageReadError, match=r"sparse\.png: is larger than"):
            open_image(path)

    def test_decoders_that_take_more_memory_get_fewer_pixels(self):
        buffer = io.BytesIO()
        Image.new("L", (100, 100)).save(buffer, "JPEG2000")
        open_image(buffer.getvalue(), max_pixels=17_000)
        with pytest.raises(ImageReadError, match="100 x 100 pixels are over the limit of 9600"):
            open_image(buffer.getvalue(), max_pixels=16_000)

    @pytest.mark.filterwarnings("ignore:Image was not the expected size:UserWarning")
    def test_an_icon_belies_its_size(self, tmp_path):
        """The list of an icon's pictures says 256 x 256; the PNG inside has other ideas."""
        inner = io.BytesIO()
        Image.new("1", (20_000, 5_000)).save(inner, "PNG")
        data = inner.getvalue()
        entry = bytes([0, 0, 0, 0, 1, 0, 32, 0]) + len(data).to_bytes(4, "little") + (22).to_bytes(4, "little")
        icon = b"\0\0\1\0\1\0" + entry + data
        assert open_image(icon, max_pixels=100_000_000).size == (20_000, 5_000)
        with pytest.raises(ImageReadError, match="20000 x 5000 pixels are over the limit"):
            open_image(icon, max_pixels=50_000_000)


def _note_error(read, path: Path, notes: list[str]) -> None:
    try:
        read(path)
        notes.append("was read")
    except ValueError as error:
        notes.append(str(error))


class TestMessyFiles:
    NAMES = ("一只 猫.png", "a\nb.png", "🐶.png", "quote'\".png", " space .png", "wrong.jpg", "图" * 70 + ".png")

    def test_names_and_wrong_suffixes(self, tmp_path):
        for name in self.NAMES:
            path = tmp_path / name
            four_corners([0, 1, 2, 3], wide=True).save(path, "PNG")
            assert quarters(open_image(path)) == quarters(read_image(str(path))) == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a picture"),
            (b"<html>404</html>", "not a picture"),
            (b"\0\0\0\x18ftypheic" + bytes(90), "not a picture|cannot be decoded"),
            (b"\0\0\0\x18ftypavif" + bytes(90), "not a picture|cannot be decoded"),
            (b"Pf\n2 2\n-1.0\n" + np.full(4, np.nan, "<f4").tobytes(), "not finite"),
        ],
    )
    def test_what_is_no_image(self, tmp_path, data, message):
        path = tmp_path / "图 1.jpg"
        path.write_bytes(data)
        for read in (open_image, read_image):
            with pytest.raises(ValueError, match=f"图 1.jpg: .*({message})"):
                read(str(path))

    @pytest.mark.parametrize("name", ["", "a\0b.png", "x" * 5000, "\udcff.png"])
    def test_names_that_no_file_can_have(self, name):
        for read in (open_image, read_image):
            with pytest.raises(ValueError):
                read(name)

    def test_colors_of_print_with_the_marker_of_adobe(self, tmp_path):
        path = tmp_path / "print.jpg"
        four_corners([0, 1, 2, 3], wide=True).convert("CMYK").save(path, quality=95)  # PIL inverts them, as Adobe
        assert b"Adobe" in path.read_bytes()
        assert quarters(open_image(path)) == [0, 1, 2, 3]


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, -1])
    def test_values_that_are_not_finite_are_refused_by_name(self, tmp_path, value, place):
        values = np.full((300, 7), 0.5, np.float32)
        values[place, place] = value
        path = tmp_path / "float.tif"
        Image.fromarray(values).save(path)
        for read in (open_image, read_image):
            with pytest.raises(ValueError, match=r"float\.tif.*not finite"):
                read(path)
        with pytest.raises(ValueError, match="not finite"):
            tiny_processor()(images=Image.open(path))

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does")
    @pytest.mark.parametrize("mode", ["F", "I", "I;16", "RGB"])
    def test_memory_is_bounded_by_the_pixels(self, tmp_path, mode):
        """A small file of 16 million pixels takes at most some 10 bytes for each of them."""
        path = tmp_path / "large.tif"
        Image.new(mode, (4000, 4000)).save(path, compression="tiff_adobe_deflate")
        assert path.stat().st_size < 1_000_000
        script = (
            "import re, sys; sys.path.insert(0, sys.argv[2]); from images_r2d2 import open_image\n"
            "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
            "before = peak(); open_image(sys.argv[1]); print(peak() - before)"
        )
        command = [sys.executable, "-c", script, str(path), str(Path(travelling.__file__).parent)]
        taken = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(taken.stdout) < 11 * 16_000_000


@pytest.mark.parametrize("format", ["TIFF", "PNG", "JPEG"])
def test_a_file_that_begins_as_a_known_format_is_not_called_unknown(format, tmp_path):
    """A TIFF of a rare kind (planes of a volume, say) is a TIFF, although Pillow cannot read it."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format=format)
    path = tmp_path / "scan.bin"
    path.write_bytes(buffer.getvalue()[:12] + b"\xff" * 400)
    with pytest.raises(ImageReadError, match=f"cannot be decoded: a {format} file, damaged or of a kind"):
        open_image(path)

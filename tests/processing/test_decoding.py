"""Strangers' pictures, decoded in processes of their own."""

import signal
import threading
import time

import pytest
from PIL import Image

from modeling_r2d2.app.decoding import ImageDecoder
from modeling_r2d2.processing.files.images import ImageReadError
from tests.helpers import tiny_image


@pytest.fixture(scope="module")
def decoder():
    decoder = ImageDecoder(max_pixels=10_000, seconds=20, processes=1)
    yield decoder
    decoder.close()


def helper_of(decoder: ImageDecoder):
    (helper,) = decoder._idle
    return helper


def test_the_same_pixels_as_open_image(decoder, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    tiny_image(3, width=40, height=20).save(tmp_path / "照片 1.png", exif=exif)
    image = decoder.open(tmp_path / "照片 1.png")
    assert image.tobytes() == tiny_image(3, width=40, height=20).transpose(Image.Transpose.ROTATE_270).tobytes()


def test_what_cannot_be_read_is_named(decoder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"GIF89a")
    Image.new("L", (101, 100)).save(tmp_path / "large.png")
    with pytest.raises(ImageReadError, match=r"^upload: "):
        decoder.open(tmp_path / "broken.png", name="upload")
    with pytest.raises(ImageReadError, match=r"101 x 100"):
        decoder.open(tmp_path / "large.png")
    with pytest.raises(ImageReadError, match="no such file"):
        decoder.open(tmp_path / "nowhere.png")


def test_a_crash_is_one_images(decoder, tmp_path):
    tiny_image(1).save(tmp_path / "1.png")
    decoder.open(tmp_path / "1.png")
    process = helper_of(decoder)._process
    process.send_signal(signal.SIGSTOP)
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    with pytest.raises(ImageReadError, match="1.png: the decoder crashed"):
        decoder.open(tmp_path / "1.png")
    assert decoder.open(tmp_path / "1.png").tobytes() == tiny_image(1).tobytes()  # by another helper


def test_a_slow_one_is_ended(decoder, tmp_path, monkeypatch):
    """A decoder that hangs: stopped by a signal, it does not answer any more."""
    tiny_image(1).save(tmp_path / "1.png")
    decoder.open(tmp_path / "1.png")
    monkeypatch.setattr(decoder, "seconds", 0.3)
    helper_of(decoder)._process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(ImageReadError, match="1.png: decoding it takes longer than 0.3 s"):
        decoder.open(tmp_path / "1.png")
    assert time.monotonic() - start < 5
    assert not decoder._idle

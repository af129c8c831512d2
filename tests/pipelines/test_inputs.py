"""Pictures of every mode and broken files; texts longer than the model takes."""

import logging

import numpy as np
import pytest
from PIL import Image

from modeling_r2d2.model import pipeline_inputs as inputs
from modeling_r2d2.model.pipeline_inputs import read_image, text_limit, tokenize
from tests.helpers import tiny_image
from tests.tiny import tiny_config


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "CMYK", "P", "1", "YCbCr", "HSV"])
def test_eight_bit_modes_are_converted_by_pil(mode):
    image = tiny_image().convert(mode)
    read = read_image(image)
    assert read.mode == "RGB"
    assert np.array_equal(read, image.convert("RGB"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257 * 128, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 257 * 128, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-5, 0, 5]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
    ],
)
def test_wide_modes_are_rescaled_not_clipped(values, expected, tmp_path):
    image = Image.fromarray(values)
    path = tmp_path / "wide.tiff"
    image.save(path)
    for source in (image, path, str(path)):
        assert np.asarray(read_image(source))[0, :, 1].tolist() == expected


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "two.gif").getpixel((3, 3)) == (255, 0, 0)


def test_broken_files_are_named(tmp_path):
    whole = tmp_path / "whole.png"
    tiny_image(width=200, height=200).save(whole)
    truncated, text = tmp_path / "truncated.png", tmp_path / "note.png"
    truncated.write_bytes(whole.read_bytes()[:-300])
    text.write_text("no picture")
    for path in (truncated, text, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=f"{path.name}: (cannot be decoded|not a picture|no such file)"):
            read_image(path)
    with pytest.raises(TypeError, match="not int"):
        read_image(3)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    tiny_image(width=40, height=40).save(path)
    for limit in (1000, 300):  # PIL would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"bomb.png: .*\(a decompression bomb\?\)"):
            read_image(path)


def test_text_limit_is_the_least(processor):
    tokenizer, config = processor.tokenizer, tiny_config()
    assert text_limit(tokenizer, config) == 16
    config.max_text_length = 9
    assert text_limit(tokenizer, config) == 9
    config.max_text_length = 64
    config.text_config.max_position_embeddings = 12
    assert text_limit(tokenizer, config) == 12


def test_long_texts_are_cut_with_one_warning(processor, caplog, monkeypatch):
    monkeypatch.setattr(inputs, "_reported", set())
    monkeypatch.setattr(inputs.logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        tokens = tokenize(processor.tokenizer, tiny_config(), ["猫", "狗" * 50])
        tokenize(processor.tokenizer, tiny_config(), ["马" * 60])
        tokenize(processor.tokenizer, tiny_config(), ["马" * 14])
    assert tokens["input_ids"].shape == (2, 16)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [3, 16]
    assert [record.getMessage() for record in caplog.records] == [
        f"a text of 52 tokens was cut to the 16 that the model takes (shown once): {'狗' * 40!r}…"
    ]

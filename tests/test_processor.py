"""R2D2Processor: parity with the authors' preprocessing, round trips, odd pictures, long texts."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BertTokenizer

from modeling_r2d2 import R2D2Processor
from modeling_r2d2.model import processing_r2d2
from modeling_r2d2.processing.files.images import open_image
from tests.helpers import tiny_image, tiny_model, tiny_processor

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def encode(processor, image, **kwargs) -> torch.Tensor:
    return processor(images=image, return_tensors="pt", **kwargs)["pixel_values"]


class TestTexts:
    @pytest.fixture(scope="class")
    @staticmethod
    def golden():
        return json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))

    @staticmethod
    def check(golden, tokenizer):
        processor = R2D2Processor.build(tokenizer)
        encoded = processor(text=golden["texts"], padding="max_length", return_tensors="pt")
        assert encoded["input_ids"].tolist() == golden["input_ids"]
        assert encoded["attention_mask"].sum(dim=1).tolist() == golden["n_tokens"]
        assert not encoded["token_type_ids"].any()
        for text, expected, count in zip(golden["texts"], golden["input_ids"], golden["n_tokens"], strict=True):
            assert processor(text=text)["input_ids"] == expected[:count]

    def test_ids_as_the_authors(self, golden):
        """With the tokens that occur there, out of the 21,128."""
        vocabulary = json.loads((DATA / "golden_vocabulary.json").read_text(encoding="utf-8"))
        self.check(golden, BertTokenizer(vocab=vocabulary))

    def test_padding_to_the_longest_by_default(self, processor):
        encoded = processor(text=["猫", "两条红色的鱼"], return_tensors="pt")
        assert encoded["input_ids"].shape == (2, 8)
        assert encoded["attention_mask"].sum(dim=1).tolist() == [3, 8]

    def test_truncation_with_exactly_one_warning(self, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        for logger in {processing_r2d2.logger, logging.getLogger("transformers")}:
            monkeypatch.setattr(logger, "propagate", True)
        processor = tiny_processor(max_length=11)  # a length of its own: what was reported before is not again
        with caplog.at_level(logging.WARNING):
            encoded = processor(text=["狗" * 50, "马" * 70, "猫"], return_tensors="pt")
            processor(text=["小船" * 50], return_tensors="pt")
            processor(text="一只猫在跑" * 9)
            processor(text="狗" * 9)
            processor(text="狗" * 10)
        assert encoded["input_ids"].shape == (3, 11)
        assert encoded["attention_mask"].sum(dim=1).tolist() == [11, 11, 3]
        assert encoded["input_ids"][0, -1] == processor.tokenizer.sep_token_id
        assert len(caplog.records) == 1, caplog.text
        assert "11" in caplog.records[0].getMessage()

    def test_no_warning_where_nothing_was_cut(self, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        processor = tiny_processor(max_length=13)
        with caplog.at_level(logging.WARNING):
            processor(text=["狗" * 11, " 狗 " * 11, "[MASK]" * 10, ""], return_tensors="pt")
            assert len(processor(text="狗" * 40, truncation=False)["input_ids"]) == 42
        assert not [r for r in caplog.records if "truncat" in r.getMessage()]

    def test_empty_text_is_a_text(self, processor):
        assert processor(text="")["input_ids"] == [2, 3]
        assert processor(text=[""], return_tensors="pt")["input_ids"].shape == (1, 2)


class TestImages:
    @pytest.mark.parametrize("size", [32, 56])
    @pytest.mark.parametrize("name", ["gray", "landscape", "portrait", "rgba", "small"])
    def test_pixels_as_the_authors(self, name, size):
        golden = np.load(GOLDEN / "preprocess" / "pixel_values.npz")[f"{name}_{size}"]
        with Image.open(GOLDEN / "preprocess" / f"{name}.png") as image:
            pixels = encode(tiny_processor(image_size=size), image)[0].numpy()
        # one grey level is 0.015: rounding after the resize may differ by none
        assert np.abs(pixels - golden).max() < 1e-5

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "PA", "1", "YCbCr"])
    def test_eight_bit_modes_as_pil_converts_them(self, processor, mode):
        image = tiny_image()
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
        assert torch.equal(encode(processor, image), encode(processor, image.convert("RGB")))

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_wide_modes_are_rescaled_as_the_readers_do(self, processor, dtype):
        gray = np.asarray(tiny_image().convert("L"))
        image = Image.fromarray(gray.astype(dtype) * dtype(257) if dtype != np.float32 else gray / np.float32(255))
        pixels = encode(processor, image)
        assert torch.equal(pixels, encode(processor, Image.fromarray(gray)))
        assert torch.equal(pixels, encode(processor, open_image(image)))

    def test_transparency_is_dropped_as_pil_does(self, processor):
        image = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
        assert torch.equal(encode(processor, image), encode(processor, Image.new("RGB", (9, 9), (255, 0, 0))))

    def test_palette_with_transparency(self, processor, tmp_path):
        image = tiny_image().convert("P")
        image.save(tmp_path / "palette.png", transparency=3)
        with Image.open(tmp_path / "palette.png") as read:
            assert read.mode == "P"
            assert torch.equal(encode(processor, read), encode(processor, image.convert("RGB")))

    def test_first_frame_of_an_animation(self, processor, tmp_path):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
        frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / "two.gif") as animation:
            assert animation.n_frames == 2
            assert torch.equal(encode(processor, animation), encode(processor, frames[0]))

    def test_all_sizes_are_squashed(self, processor):
        images = [tiny_image(width=w, height=h) for w, h in ((1, 1), (500, 3), (3, 500), (32, 32))]
        pixels = encode(processor, images)
        assert pixels.shape == (4, 3, 32, 32)
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels[2:3], encode(processor, images[2]))

    def test_the_given_image_is_left_alone(self, processor):
        image = tiny_image().convert("RGBA")
        before = image.tobytes()
        encode(processor, image)
        assert image.mode == "RGBA"
        assert image.tobytes() == before

    def test_truncated_file(self, processor, tmp_path):
        tiny_image(width=300, height=300).save(tmp_path / "whole.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-400])
        with Image.open(tmp_path / "cut.png") as image, pytest.raises(OSError, match="truncated"):
            encode(processor, image)

    def test_arrays_and_tensors(self, processor):
        image = tiny_image()
        expected = encode(processor, image)
        assert torch.equal(encode(processor, np.asarray(image)), expected)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(encode(processor, [tensor, tensor]), expected.repeat(2, 1, 1, 1))


class TestArraysOfOtherTypes:
    """Each way to write down the same picture gives the same pixels; none is rescaled twice."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda pixels: pixels.astype(np.float32) / 255,
            lambda pixels: pixels.astype(np.float64) / 255,
            lambda pixels: pixels.astype(np.float16) / np.float16(255),
            lambda pixels: pixels.astype(np.float32),
            lambda pixels: pixels.astype(np.int64),
            lambda pixels: pixels.astype(np.uint16) * 257,
            lambda pixels: np.moveaxis(pixels, -1, 0).astype(np.float32) / 255,
            lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
            lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).double().requires_grad_() / 255,
            lambda pixels: [torch.from_numpy(pixels).permute(2, 0, 1).float() / 255],
        ],
    )
    def test_the_same_image(self, processor, change):
        pixels = np.array(tiny_image())
        assert torch.equal(encode(processor, change(pixels)), encode(processor, pixels))

    def test_coarse_floats(self, processor):
        pixels = np.array(tiny_image())
        found = encode(processor, torch.from_numpy(pixels).permute(2, 0, 1).to(torch.bfloat16) / 255)
        assert (found - encode(processor, pixels)).abs().max() < 0.03

    def test_black_and_white(self, processor):
        mask = np.random.default_rng(0).random((20, 30, 3)) < 0.5
        assert torch.equal(encode(processor, mask), encode(processor, mask.astype(np.uint8) * 255))

    def test_pixels_that_are_not_to_be_rescaled_are_left(self, processor):
        pixels = np.array(tiny_image()).astype(np.float32) / 255
        for options in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
            found = processor(images=pixels, return_tensors="pt", **options)["pixel_values"]
            assert (found - encode(processor, tiny_image())).abs().max() < 1e-5

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_values_that_are_no_pixels_are_refused(self, processor, dtype):
        normalized = np.array([[[-2, 0, 2]]] * 4, dtype=dtype)
        for wrong in (normalized, np.array([[[0, 300, 7]]] * 4, dtype=dtype)):
            with pytest.raises(ValueError, match=r"and these lie in"):
                processor(images=wrong)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_refused(self, processor, value):
        pixels = np.full((8, 8, 3), 0.5, dtype=np.float32)
        pixels[3, 3, 1] = value
        for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels[..., 1])):
            with pytest.raises(ValueError, match="not finite"):
                processor(images=[image])


def test_empty_input_is_refused(processor):
    for arguments in ({"images": []}, {"text": []}, {"images": [], "text": ["猫"]}, {"images": (), "text": ()}):
        with pytest.raises(ValueError, match="is an empty list"):
            processor(**arguments)
    with pytest.raises(ValueError):
        processor()


def test_images_and_texts_together(processor):
    both = processor(images=[tiny_image()] * 3, text=["猫", "狗狗"], return_tensors="pt")
    assert set(both) == {"pixel_values", "input_ids", "token_type_ids", "attention_mask"}
    assert set(both) >= set(processor.model_input_names) - {"image_ids"}
    assert len(both["pixel_values"]) == 3
    assert len(both["input_ids"]) == 2
    with torch.no_grad():
        assert tiny_model()(**both).logits_per_image.shape == (3, 2)


class TestRoundTrips:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory):
        folder = tmp_path_factory.mktemp("processor")
        tiny_model().save_pretrained(folder)
        tiny_processor(max_length=12).save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("load", [R2D2Processor, AutoProcessor], ids=lambda c: c.__name__)
    def test_load_and_save_again(self, folder, load, tmp_path):
        arguments = {
            "images": [tiny_image(1).convert("L"), tiny_image(2)],
            "text": ["一只猫", "狗" * 99],
            "return_tensors": "pt",
        }
        expected = tiny_processor(max_length=12)(**arguments)
        first = load.from_pretrained(folder)
        first.save_pretrained(tmp_path / "again")
        # a processor alone, without a model's config beside it, loads too
        second = load.from_pretrained(tmp_path / "again")
        for processor in (first, second):
            assert type(processor) is R2D2Processor
            encoded = processor(**arguments)
            assert encoded["input_ids"].shape == (2, 12), "truncation survives"
            for name, tensor in expected.items():
                assert torch.equal(encoded[name], tensor), name

    def test_what_is_written(self, folder):
        names = {path.name for path in folder.iterdir()}
        assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "processing_r2d2.py"} <= names
        config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        assert config["image_processor"]["image_processor_type"] == "CLIPImageProcessor"
        assert config["auto_map"]["AutoProcessor"] == "processing_r2d2.R2D2Processor"
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert tokenizer["tokenizer_class"] == "BertTokenizer"
        assert tokenizer["model_max_length"] == 12

    def test_parts_load_by_themselves(self, folder):
        assert AutoTokenizer.from_pretrained(folder)("猫")["input_ids"] == tiny_processor().tokenizer("猫")["input_ids"]
        pixels = AutoImageProcessor.from_pretrained(folder)(images=tiny_image(), return_tensors="pt")
        assert torch.equal(pixels["pixel_values"], encode(tiny_processor(), tiny_image()))

    def test_other_image_settings_are_kept(self, tmp_path):
        own = R2D2Processor.build(
            tiny_processor().tokenizer, image_size=48, max_length=9, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        own.save_pretrained(tmp_path)
        loaded = R2D2Processor.from_pretrained(tmp_path)
        assert torch.equal(encode(loaded, tiny_image()), encode(own, tiny_image()))
        assert encode(loaded, tiny_image()).shape == (1, 3, 48, 48)
        assert loaded.tokenizer.model_max_length == 9


def test_texts_of_every_sequence():
    """A tuple, an array, a generator and a column of a data set are lists of texts."""
    from datasets import Dataset

    processor, texts = tiny_processor(), ["猫", "两条红色的鱼"]
    expected = processor(text=texts, return_tensors="pt")["input_ids"]
    column = Dataset.from_dict({"text": texts})["text"]
    for given in (tuple(texts), np.array(texts), (text for text in texts), column):
        assert torch.equal(processor(text=given, return_tensors="pt")["input_ids"], expected)
    with pytest.raises(ValueError, match="string or list of strings|text input must be of type"):
        processor(text=3)


def test_images_of_every_kind(tmp_path):
    """A file by its name or its bytes, grey arrays, a generator: the same pixels as the picture itself."""
    processor, image = tiny_processor(), tiny_image(0)
    file = tmp_path / "图 1.png"
    image.save(file)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    for images in (file, str(file), file.read_bytes(), [file], (each for each in [image])):
        assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], expected)
    gray = np.asarray(image.convert("L"))
    expected = processor(images=image.convert("L"), return_tensors="pt")["pixel_values"]
    for images in (gray, [gray], torch.from_numpy(gray.copy()), gray.astype(np.float32) / 255):
        found = processor(images=images, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n", b""])
def test_files_that_are_no_images(tmp_path, content):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    for images in (file, str(file), [file, file]):
        with pytest.raises(ValueError, match=r"a\.png"):
            tiny_processor()(images=images)
    with pytest.raises(ValueError, match=r"no such file|nowhere"):
        tiny_processor()(images=tmp_path / "nowhere.png")

"""Warm starts see pictures as their towers were trained to, and say what cannot be started from."""

import json
import logging

import numpy
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.integrations.warm_preprocessing import describe_images
from modeling_r2d2.training.start import StartingPoint, starting_point
from tests.helpers import tiny_image, tiny_processor
from tests.tiny import TEXT, VIT

VISION = {**VIT, "image_size": 32, "patch_size": 16}
DINO = {**{name: value for name, value in VISION.items() if name != "intermediate_size"}, "image_size": 64}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 32, "width": 32}
TOWERS = {
    "siglip": (SiglipVisionModel(SiglipVisionConfig(**VISION)), SiglipImageProcessorPil(size=SQUARE)),
    "vit": (ViTModel(ViTConfig(**VISION)), ViTImageProcessorPil(size=SQUARE, resample=2)),
    "dinov2": (
        Dinov2Model(Dinov2Config(**DINO)),
        BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, do_center_crop=True, resample=3, **IMAGENET),
    ),
    "convnext": (
        ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875, **IMAGENET),
    ),
}


@pytest.fixture
def roberta(tmp_path):
    """A text tower with its tokenizer, which keeps capital letters."""
    folder = tmp_path / "roberta"
    BertModel(BertConfig(**TEXT)).save_pretrained(folder)
    vocabulary = tiny_processor().tokenizer.get_vocab()
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(folder)
    return folder


def saved(folder, model, processor=None):
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def image(width: int = 90, height: int = 60) -> Image.Image:
    coarse = numpy.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", TOWERS)
def test_the_towers_own_preprocessing(tmp_path, roberta, name, caplog):
    """Pixels, and with them the features, are those of the tower's own image processor."""
    model, own = TOWERS[name]
    clip = saved(tmp_path / "clip", model.eval(), own)
    with caplog.at_level(logging.WARNING, "modeling_r2d2"):
        network, processor = starting_point(StartingPoint(clip=clip, roberta=str(roberta)), [])
    theirs = AutoImageProcessor.from_pretrained(clip)(image(), return_tensors="pt")["pixel_values"]
    ours = processor(images=[image()], return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
    assert processor.image_processor.resample == own.resample
    with torch.no_grad():
        expected = AutoModel.from_pretrained(clip)(theirs).last_hidden_state.flatten()
        found = network.eval().get_image_features(ours).last_hidden_state.flatten()
    if name != "convnext":  # a feature map, whose tokens stand in another order
        assert torch.cosine_similarity(found, expected, dim=0) > 0.999
    processor.save_pretrained(tmp_path / "again")
    again = type(processor).from_pretrained(tmp_path / "again")
    assert torch.equal(again(images=[image()], return_tensors="pt")["pixel_values"], ours)
    assert not caplog.records


def test_clip_towers_are_squashed_with_their_own_mean(tmp_path, roberta):
    own = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    clip = saved(tmp_path / "clip", CLIPVisionModel(CLIPVisionConfig(**VISION)), own)
    _, processor = starting_point(StartingPoint(clip=clip, roberta=str(roberta)), [])
    images = processor.image_processor
    assert dict(images.size) == SQUARE
    assert not images.do_center_crop
    assert list(images.image_mean) == [0.1, 0.2, 0.3]
    assert list(images.image_std) == [0.4, 0.5, 0.6]


def test_image_size(tmp_path, roberta):
    """Another side, crop and resize in proportion; said in patches; refused where patches do not divide it."""
    model, own = TOWERS["dinov2"]
    clip = saved(tmp_path / "clip", model, own)
    network, processor = starting_point(StartingPoint(clip=clip, roberta=str(roberta), image_size=64), [])
    assert processor(images=[image()], return_tensors="pt")["pixel_values"].shape[-2:] == (64, 64)
    assert processor.image_processor.size["shortest_edge"] == 80
    line = describe_images(processor, network.config.vision_config)
    assert "64×64 pixels (shorter side 80, centre cropped)" in line
    assert "16 patches each" in line
    with pytest.raises(ValueError, match="--image-size 50 is no multiple of the tower's patches of 16.* 48 and 64"):
        starting_point(StartingPoint(clip=clip, roberta=str(roberta), image_size=50), [])
    with pytest.raises(ValueError, match="are of a warm start"):
        starting_point(StartingPoint(preset="r2d2-vit-b-16", image_size=64), [])


def test_no_image_processor_is_reported(tmp_path, roberta, caplog):
    clip = saved(tmp_path / "clip", TOWERS["vit"][0])
    with caplog.at_level(logging.WARNING, "modeling_r2d2"):
        starting_point(StartingPoint(clip=clip, roberta=str(roberta)), [])
    assert "has no image processor" in caplog.text


def test_the_text_towers_own_tokenizer(tmp_path, roberta):
    """Its letters' case, its length; one of another vocabulary is refused."""
    clip = saved(tmp_path / "clip", *TOWERS["vit"])
    _, processor = starting_point(StartingPoint(clip=clip, roberta=str(roberta)), [])
    own = BertTokenizer.from_pretrained(roberta)
    assert processor.tokenizer("A b").input_ids == own("A b").input_ids
    assert processor.tokenizer.model_max_length == TEXT["max_position_embeddings"]
    vocabulary = {
        f"[{word}]" if number < 5 else word: number
        for number, word in enumerate(
            ["PAD", "UNK", "CLS", "SEP", "MASK", *(chr(0x4E00 + number) for number in range(200))]
        )
    }
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="205 entries, and the text tower 99 embeddings"):
        starting_point(StartingPoint(clip=clip, roberta=str(roberta), tokenizer=str(tmp_path / "other")), [])


def pretrain(tmp_path, clip, roberta, *more):
    tiny_image().save(tmp_path / "0.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": "0.png", "text": "猫"}), encoding="utf-8")
    words = ["pretrain", "--data", tmp_path / "pairs.jsonl", "--output", tmp_path / "out", "--clip", clip]
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--roberta", roberta, "--steps", "1", *more]])
    return str(done.exception)


def test_towers_that_do_not_fit_are_one_line(tmp_path, roberta):
    """NaFlex, a kind without a stated pooling, sizes that do not go together."""
    naflex = Siglip2VisionConfig(**VIT, num_patches=4, patch_size=16)
    refused = pretrain(tmp_path, saved(tmp_path / "naflex", Siglip2VisionModel(naflex)), roberta)
    assert "reads more than pixels of one size" in refused
    ijepa = saved(tmp_path / "ijepa", IJepaModel(IJepaConfig(**VISION)), ViTImageProcessorPil(size=SQUARE))
    assert "--vision-pooling" in pretrain(tmp_path, ijepa, roberta)
    starting_point(StartingPoint(clip=ijepa, roberta=str(roberta), vision_pooling="mean"), [])
    with pytest.raises(ValueError, match="vision_pooling must be one of 'cls', 'mean'"):
        starting_point(StartingPoint(clip=ijepa, roberta=str(roberta), vision_pooling="max"), [])
    vit = saved(tmp_path / "vit", *TOWERS["vit"])
    config = json.loads((roberta / "config.json").read_text())
    (roberta / "config.json").write_text(json.dumps({**config, "hidden_size": 770}))
    wide = pretrain(tmp_path, vit, roberta)
    (roberta / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    heads = pretrain(tmp_path, vit, roberta)
    for line in (refused, wide, heads):
        assert "\n" not in line
    assert str(roberta) in wide
    assert "multiple" in heads

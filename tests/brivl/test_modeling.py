"""What BriVL refuses, and what random weights, odd inputs and other precisions give."""

import copy

import pytest
import torch

from modeling_r2d2 import BriVLConfig, BriVLModel, BriVLProcessor
from modeling_r2d2.model.configuration_brivl import BriVLTextConfig, BriVLVisionConfig
from tests.brivl import golden
from tests.helpers import tiny_image

CASE = "brivl_120"


@pytest.fixture(scope="module")
def model() -> BriVLModel:
    """Of random weights."""
    torch.manual_seed(0)
    return BriVLModel(golden.config(CASE)).eval()


@pytest.fixture(scope="module")
def processor() -> BriVLProcessor:
    return golden.processor(CASE)


@pytest.mark.parametrize(
    ("size", "padded"), [(380, [8]), (456, [13, 27]), (224, []), (256, []), (384, []), (512, []), ([380, 380], [8])]
)
def test_padding_belongs_to_the_size(size, padded):
    """Of EfficientNet-B5, whatever the configuration was given."""
    config = BriVLVisionConfig(image_size=size, depthwise_padding=[13, 27])
    assert config.depthwise_padding == padded
    assert BriVLVisionConfig.from_dict(config.to_dict()).depthwise_padding == padded


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BriVLVisionConfig(image_size=381), "image_size is 381; it must be one even number"),
        (lambda: BriVLVisionConfig(image_size=[380, 456]), "must be one even number"),
        (lambda: BriVLVisionConfig(image_size=32), "leaves a map of 1 × 1"),
        (lambda: BriVLVisionConfig(region_grid=0), "region_grid is 0"),
        (lambda: BriVLVisionConfig(frozen_stages=8), "frozen_stages is 8, and there are 7 stages"),
        (lambda: BriVLVisionConfig(transformer_config={"hidden_size": 1024}), "hidden_size is 1024, not 2048"),
        (lambda: BriVLVisionConfig(transformer_config={"num_attention_heads": 3}), "transformer_config: hidden_size"),
        (lambda: BriVLTextConfig(frozen_layers=13), "frozen_layers is 13, and there are 12 layers"),
        (lambda: BriVLConfig(max_text_length=600), "padded to 600 tokens .* has 512 positions"),
        (lambda: BriVLConfig.from_preset("brivl-b5-381"), "unknown preset"),
    ],
)
def test_settings_that_are_refused(make, message):
    with pytest.raises(Exception, match=message) as caught:
        make()
    assert "ValueError" in f"{caught.type} {caught.value!r} {caught.value.__cause__!r}"


def test_inputs_that_are_refused(model, processor):
    pixels, ids = torch.zeros(2, 3, 120, 120), torch.ones(1, 25, dtype=torch.int64)
    for arguments, message in (
        ({"pixel_values": torch.zeros(1, 3, 128, 128)}, "128×128 pixels: this tower pads for 120×120"),
        ({"pixel_values": pixels, "boxes": torch.zeros(1, 3, 4)}, r"boxes are \(pictures, boxes, 4\)"),
        ({"pixel_values": pixels, "box_mask": torch.ones(2, 3)}, "there are no boxes"),
        ({"input_ids": ids}, "25 tokens exceeds the 24 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    image = tiny_image()
    for arguments, message in (
        ({"text": "好", "boxes": [[0, 0, 1, 1]]}, "boxes are of pictures"),
        ({"images": [image] * 2, "boxes": [[[0, 0, 1, 1]]]}, "2 pictures and boxes of 1"),
        ({"images": image, "boxes": [[0, 0, 1]]}, "not four numbers each"),
        ({"images": image, "boxes": [[0, 0, 1, float("nan")]]}, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(return_tensors="pt", **arguments)


def test_boxes_are_brought_to_the_size_of_the_model(processor):
    """Of any kind of picture; a picture without boxes has the whole alone."""
    image = tiny_image().resize((60, 30))
    made = processor(images=[image, image], boxes=[[[6, 3, 30, 30]], []], return_tensors="pt")
    assert made["boxes"].tolist() == [[[12, 12, 60, 120], [0, 0, 120, 120]], [[0, 0, 120, 120], [0, 0, 0, 0]]]
    assert made["box_mask"].tolist() == [[1, 1], [1, 0]]
    one = processor(images=image, boxes=[[6, 3, 30, 30]], return_tensors="pt")
    assert torch.equal(one["boxes"], made["boxes"][:1])
    many = processor(images=image, boxes=[[0, 0, 1, 1]] * 99, return_tensors="pt")
    assert many["boxes"].shape == (1, processor.max_boxes, 4)


@torch.no_grad()
def test_random_weights_tell_images_apart(model):
    """The library's own beginning of batch norms would leave next to nothing of a picture in training."""
    whole = copy.deepcopy(model).train()
    feature_map = whole.vision_model.backbone.feature_map(torch.randn(2, 3, 120, 120))
    assert feature_map.std() > 0.1
    assert (feature_map[0] - feature_map[1]).abs().max() > 0.1


@torch.no_grad()
def test_nothing_real_is_finite(model):
    """A text without a real token, and a picture without a real box; the authors' program gives NaN."""
    ids = torch.tensor([[2, 5, 3], [0, 0, 0]])
    texts = model(input_ids=ids).text_embeds
    boxes = torch.tensor([[[0.0, 0.0, 60.0, 60.0]]] * 2)
    images = model(
        pixel_values=torch.randn(2, 3, 120, 120), boxes=boxes, box_mask=torch.tensor([[1], [0]])
    ).image_embeds
    assert texts.isfinite().all()
    assert images.isfinite().all()


@torch.no_grad()
def test_low_precision(model):
    inputs = {"input_ids": torch.tensor([[2, 5, 3]]), "pixel_values": torch.randn(1, 3, 120, 120)}
    expected = model(**inputs)
    low = BriVLModel(golden.config(CASE)).eval()
    low.load_state_dict(model.state_dict())
    output = low.to(torch.bfloat16)(**inputs)
    for name in ("image_embeds", "text_embeds"):
        assert torch.cosine_similarity(output[name].float(), expected[name]).min() > 0.98

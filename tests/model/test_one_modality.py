"""What a model gives for what a processor makes of images alone, of texts alone, and of both."""

import pytest
import torch

from modeling_r2d2 import (
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
)
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.tiny import tiny_config
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

TEXTS = ["一只猫", "两条红色的鱼在水"]


@pytest.fixture(scope="module")
def inputs() -> dict:
    """What the processor makes of images, texts and both."""
    processor, images = tiny_processor(), [tiny_image(n) for n in range(2)]
    kinds = {"images": {"images": images}, "texts": {"text": TEXTS}, "both": {"images": images, "text": TEXTS}}
    return {name: processor(**given, return_tensors="pt") for name, given in kinds.items()}


def whole_model(kind: str) -> tuple[torch.nn.Module, dict]:
    """A model of two towers, and what its forward is given so that it compares alone."""
    if kind.startswith("wukong"):
        return tiny_wukong("filip" if kind.endswith("wise") else "clip"), {}
    if kind == "model":
        return tiny_model(), {}
    cls = R2D2ForPreTraining if kind == "pretraining" else R2D2ForImageTextRetrieval
    return cls(tiny_config()).eval(), {"return_loss": False}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["model", "pretraining", "retrieval", "wukong", "wukong-token-wise"])
def test_one_tower(kind, inputs):
    model, options = whole_model(kind)
    both = model(**inputs["both"], **options)
    assert both.logits_per_image is not None
    for given, own, other in (("images", "image", "text"), ("texts", "text", "image")):
        output = model(**inputs[given], **options)
        assert torch.equal(getattr(output, f"{own}_embeds"), getattr(both, f"{own}_embeds"))
        assert output.logits_per_image is output.logits_per_text is output.loss is None
        assert getattr(output, f"{other}_embeds") is None
        kept = {"image": "vision_model_output", "text": "text_model_output"}
        assert getattr(output, kept[own]).pooler_output is not None
        assert getattr(output, kept[other]) is None
        assert output.to_tuple()  # return_dict=False
    with pytest.raises(ValueError, match="pixel_values, input_ids, or both"):
        model(**options)


@pytest.mark.parametrize("kind", ["model", "pretraining", "retrieval", "wukong", "wukong-token-wise"])
@pytest.mark.parametrize(("given", "missing"), [("images", "input_ids"), ("texts", "pixel_values")])
def test_a_loss_needs_both(kind, given, missing, inputs):
    model, _ = whole_model(kind)
    with pytest.raises(ValueError, match=f"return_loss.*{missing} is missing"):
        model(**inputs[given], return_loss=True)


@pytest.mark.parametrize(
    ("cls", "given", "message"),
    [
        (R2D2ForImageTextMatching, "images", "ranking takes images and texts.* input_ids is missing"),
        (R2D2ForImageTextMatching, "texts", "ranking takes images and texts.* pixel_values is missing"),
        (R2D2ForConditionalGeneration, "images", r"generate\(pixel_values=…\)"),
        (R2D2ForConditionalGeneration, "texts", "give the pictures"),
        (R2D2ForImageClassification, "texts", "pixel_values, which are missing"),
    ],
)
def test_heads_that_need_more(cls, given, message, inputs):
    with pytest.raises(ValueError, match=message):
        cls(tiny_config())(**inputs[given])


@torch.no_grad()
@pytest.mark.parametrize("cls", [R2D2ForImageTextMatching, R2D2ForConditionalGeneration])
def test_whatever_the_processor_makes(cls, inputs):
    """`token_type_ids` among it, in every class."""
    output = cls(tiny_config()).eval()(**inputs["both"])
    assert output.to_tuple()


def test_image_towers_read_no_texts(inputs):
    """Not even where attention would take the texts' mask for its own."""
    for call in (R2D2ForImageClassification(tiny_config()), tiny_model().get_image_features):
        with pytest.raises(ValueError, match="reads no texts: leave attention_mask, input_ids, token_type_ids out"):
            call(**inputs["both"])


@torch.no_grad()
def test_wukong_takes_what_its_processor_makes():
    processor = tiny_wukong_processor()
    both = processor(images=[tiny_image()], text=TEXTS, return_tensors="pt")
    assert tiny_wukong()(**both).logits_per_image.shape == (1, 2)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["model", "pretraining", "retrieval", "matching", "wukong", "wukong-token-wise"])
def test_tuples_where_the_configuration_asks_for_them(kind, inputs):
    """As in transformers, with `return_dict` in the configuration and not in the call."""
    if kind == "matching":
        model, options = R2D2ForImageTextMatching(tiny_config()).eval(), {}
    else:
        model, options = whole_model(kind)
    for given in ("both",) if kind == "matching" else ("both", "images", "texts"):
        expected = model(**inputs[given], **options).to_tuple()
        model.config.return_dict = False
        found = model(**inputs[given], **options)
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        assert torch.equal(found[0], expected[0])
        assert not isinstance(model(**inputs[given], **options, return_dict=True), tuple)
        model.config.return_dict = True
    if kind in ("pretraining", "retrieval"):
        model.config.return_dict = False
        assert model(**inputs["both"])[0].isfinite()

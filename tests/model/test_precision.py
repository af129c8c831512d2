"""What pixels are cast to: the dtype that the image tower computes in, whatever its weights are stored as."""

import pytest
import torch
from torch import nn

from modeling_r2d2 import (
    R2D2Config,
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForPreTraining,
    R2D2Model,
    WukongModel,
)
from tests.tiny import TOWERS, tiny_batch, tiny_config
from tests.wukong.tiny import tiny_wukong_config

CLASSES = (
    R2D2Model,
    R2D2ForPreTraining,
    R2D2ForImageTextMatching,
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    WukongModel,
)


class StoredLinear(nn.Module):
    """A linear layer whose weights are stored as `store`: integers with a scale, as bitsandbytes' int8 and nf4, or
    float8; it computes in the dtype of its input."""

    def __init__(self, linear: nn.Linear, store: torch.dtype):
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        stored = linear.weight.detach() / scale
        stored = (stored.round() + 128 if store is torch.uint8 else stored).to(store)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale, self.shift = scale, 128 if store is torch.uint8 else 0
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        assert states.is_floating_point()
        weight = (self.weight.to(states.dtype) - self.shift) * self.scale.to(states.dtype)
        return nn.functional.linear(states, weight, None if self.bias is None else self.bias.to(states.dtype))


def quantize(model: nn.Module, store: torch.dtype) -> nn.Module:
    """Every linear layer stored as `store`, also the projections; not that of torch's own attention, which reads the
    weight itself (SigLIP's pooling head, which older transformers build though nothing reads it)."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(module, nn.MultiheadAttention):
                setattr(module, name, StoredLinear(child, store))
    return model


def build(kind: type, tower: str = "clip") -> nn.Module:
    torch.manual_seed(0)
    config = tiny_wukong_config("clip", tower) if kind is WukongModel else tiny_config(tower)
    return kind(config).eval()


def image_states(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, R2D2ForConditionalGeneration):
            return model.get_image_states(pixels)
        if isinstance(model, R2D2ForImageClassification):
            return model(pixels).logits
        return model.get_image_features(pixels).pooler_output


@pytest.mark.parametrize("store", [torch.uint8, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", CLASSES)
def test_quantized_weights(kind, store):
    pixels = tiny_batch(3)["pixel_values"]
    plain = build(kind)
    expected = image_states(plain, pixels)
    model = quantize(build(kind), store)
    assert model.dtype is torch.float32
    cosine = torch.cosine_similarity(expected.flatten(1), image_states(model, pixels).flatten(1))
    assert cosine.min() > 0.99, cosine


@pytest.mark.parametrize("tower", [t for t in TOWERS if t not in ("resnet", "convnext")])
def test_quantized_towers_in_bfloat16(tower):
    """The embeddings stay in bfloat16, and the model says so, whichever projection is quantised."""
    model = quantize(build(R2D2Model, tower).to(torch.bfloat16), torch.uint8)
    assert model.dtype is torch.bfloat16
    assert image_states(model, tiny_batch(3)["pixel_values"]).dtype is torch.bfloat16


@pytest.mark.parametrize("kind", CLASSES)
def test_temperature_does_not_decide(kind):
    """The temperature is the first parameter and stays in float32; the rest computes in bfloat16."""
    model = build(kind)
    temperature = getattr(model, "temperature", None)
    model = model.to(torch.bfloat16)
    if temperature is not None:
        model.temperature.data = model.temperature.data.float()
    assert model.dtype is torch.bfloat16
    assert image_states(model, tiny_batch(3)["pixel_values"]).is_floating_point()


def test_towers_of_two_dtypes():
    """A frozen image tower in float32 beside the rest in bfloat16: pixels follow their own tower."""
    model = build(R2D2Model).to(torch.bfloat16)
    model.vision_model.float()
    model.vision_projection.float()
    output = model.get_image_features(tiny_batch(3)["pixel_values"].double())
    assert output.pooler_output.dtype is torch.float32
    model = build(R2D2Model)
    model.vision_model.to(torch.bfloat16)
    model.vision_projection.to(torch.bfloat16)
    assert model.get_image_features(tiny_batch(3)["pixel_values"]).pooler_output.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", [R2D2ForPreTraining, WukongModel, R2D2ForImageClassification])
def test_autocast(kind):
    """Pixels in half precision, as a collator for CUDA makes them, and autocast over float32 weights."""
    model = build(kind)
    batch = {k: v for k, v in tiny_batch(4).items() if k in ("input_ids", "attention_mask")} | {"return_loss": True}
    if kind is R2D2ForImageClassification:
        batch = {"labels": torch.tensor([0, 1, 0, 1])}
    pixels = tiny_batch(4)["pixel_values"]
    plain = model(pixel_values=pixels, **batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=pixels.half(), **batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=0.05)
    assert all(p.grad.dtype is torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_bitsandbytes(bits, tmp_path):
    """The library itself, where it is installed (it is no dependency of ours)."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    wide = {"hidden_size": 64, "intermediate_size": 128}  # its CPU kernels take multiples of 32
    config = tiny_config()
    config = R2D2Config(
        vision_config={**config.vision_config.to_dict(), **wide},
        text_config={**config.text_config.to_dict(), **wide},
        cross_encoder_config={**config.cross_encoder_config.to_dict(), **wide},
        projection_dim=64,
    )
    plain = R2D2Model(config).eval()
    plain.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_8bit=bits == "int8",
        load_in_4bit=bits == "nf4",
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["text_image_match_head", "image_text_match_head"],
    )
    model = R2D2Model.from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")
    batch = {k: v for k, v in tiny_batch(3).items() if k in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        for name in ("image_embeds", "text_embeds"):
            expected, actual = plain(**batch)[name], model(**batch)[name].float()
            assert torch.cosine_similarity(expected, actual).min() > 0.95, name
        assert torch.isfinite(model.match(**batch).match_probability).all()

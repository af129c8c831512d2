"""LoRA adapters of UNet and text encoder: scale, save, load, weigh and unload, as diffusers' users expect."""

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from modeling_r2d2 import R2D2TextToImagePipeline
from tests.text_to_image.conftest import generator, tiny_pipeline

TARGETS = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["query", "key", "value"]}
RANK = 4


def draw(pipeline, **call) -> torch.Tensor:
    return pipeline("一只猫", generator=generator(), num_inference_steps=2, output_type="pt", **call).images


def adapted(*names: str, alpha: int = 8, **config):
    """A tiny pipeline with adapters that change its pictures."""
    pipeline = tiny_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name in names:
            lora = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=TARGETS[name], init_lora_weights=False, **config)
            getattr(pipeline, name).add_adapter(lora)
    return pipeline


def merged_by_hand(pipeline, scale: float):
    """A fresh tiny pipeline whose text encoder has B @ A · alpha / rank · scale in its weights."""
    plain = tiny_pipeline()
    for name, layer in pipeline.text_encoder.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            strength = pipeline.text_encoder.peft_config["default"].lora_alpha / RANK * scale
            plain.text_encoder.get_submodule(name).weight.data += strength * (b @ a).detach()
    return plain


@pytest.fixture(scope="module")
def without():
    return draw(tiny_pipeline())


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_the_scale_reaches_the_text_encoder(without, scale):
    pipeline = adapted("text_encoder")
    full = draw(pipeline)
    assert (full - without).abs().max() > 1e-2
    scaled = draw(pipeline, cross_attention_kwargs={"scale": scale})
    torch.testing.assert_close(scaled, draw(merged_by_hand(pipeline, scale)), atol=1e-4, rtol=0)
    assert torch.equal(draw(pipeline), full)  # the scale was this call's alone


def test_the_scale_reaches_the_unet(without):
    pipeline = adapted("unet")
    assert (draw(pipeline) - without).abs().max() > 1e-2
    torch.testing.assert_close(draw(pipeline, cross_attention_kwargs={"scale": 0.0}), without, atol=1e-4, rtol=0)


def test_encode_prompt_scales_prompt_and_negative_prompt():
    pipeline = adapted("text_encoder")
    with torch.no_grad():
        half = pipeline.encode_prompt("一只猫", negative_prompt="山", lora_scale=0.5)
        expected = merged_by_hand(pipeline, 0.5).encode_prompt("一只猫", negative_prompt="山")
    torch.testing.assert_close(half, expected, atol=1e-5, rtol=1e-5)


def test_the_scale_is_put_back_after_an_error(monkeypatch):
    pipeline = adapted("text_encoder")
    full = draw(pipeline)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.text_encoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, cross_attention_kwargs={"scale": 0.0})
    monkeypatch.undo()
    assert torch.equal(draw(pipeline), full)


@pytest.mark.parametrize("names", [("text_encoder",), ("unet", "text_encoder")], ids="+".join)
@pytest.mark.parametrize("alpha", [RANK, 8])
def test_saved_adapters_load_again(without, tmp_path, names, alpha):
    pipeline = adapted(*names, alpha=alpha)
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipeline, name)) for name in names}
    metadata = {}
    if alpha != RANK:  # a file without this is read as alpha = rank
        configs = {name: getattr(pipeline, name).peft_config["default"].to_dict() for name in names}
        metadata = {f"{name}_lora_adapter_metadata": config for name, config in configs.items()}
    R2D2TextToImagePipeline.save_lora_weights(tmp_path, **layers, **metadata)
    loaded = tiny_pipeline()
    loaded.load_lora_weights(tmp_path, adapter_name="ink")
    expected = draw(pipeline)
    torch.testing.assert_close(draw(loaded), expected, atol=1e-5, rtol=0)
    assert loaded.get_list_adapters() == {name: ["ink"] for name in names}

    half = draw(pipeline, cross_attention_kwargs={"scale": 0.5})
    loaded.set_adapters("ink", 0.5)
    torch.testing.assert_close(draw(loaded), half, atol=1e-5, rtol=0)
    draw(loaded, cross_attention_kwargs={"scale": 0.25})
    torch.testing.assert_close(draw(loaded), half, atol=1e-5, rtol=0)  # a call leaves the weights that were set

    loaded.set_adapters("ink", 1.0)
    loaded.fuse_lora(components=list(names))
    torch.testing.assert_close(draw(loaded), expected, atol=1e-4, rtol=0)
    loaded.unfuse_lora(components=list(names))
    loaded.disable_lora()
    torch.testing.assert_close(draw(loaded), without, atol=1e-4, rtol=0)
    loaded.unload_lora_weights()
    torch.testing.assert_close(draw(loaded), without, atol=1e-4, rtol=0)
    assert not any("lora" in name for name in loaded.text_encoder.state_dict())


def test_ranks_that_differ(tmp_path):
    pipeline = adapted("text_encoder", alpha=RANK, rank_pattern={"query": 2}, alpha_pattern={"query": 2})
    layers = get_peft_model_state_dict(pipeline.text_encoder)
    assert {weight.shape[1] for name, weight in layers.items() if "lora_B" in name} == {2, RANK}
    R2D2TextToImagePipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=layers)
    loaded = tiny_pipeline()
    loaded.load_lora_weights(tmp_path)
    torch.testing.assert_close(draw(loaded), draw(pipeline), atol=1e-5, rtol=0)

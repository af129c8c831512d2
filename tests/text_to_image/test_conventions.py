"""The conventions that users, and diffusers' own common tests, expect of a pipeline."""

import ast
import inspect
import io
import logging
import textwrap

import accelerate
import pytest
import torch
from diffusers.utils import BaseOutput
from transformers import RobertaConfig, RobertaModel

from modeling_r2d2 import R2D2TextToImagePipeline
from tests.text_to_image.conftest import generator, tiny_pipeline, tiny_unet

CALL = {"num_inference_steps": 2, "output_type": "pt"}
USUAL = {
    "prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "num_images_per_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "output_type",
    "return_dict",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "cross_attention_kwargs",
}


def test_signature():
    parameters = inspect.signature(R2D2TextToImagePipeline.__call__).parameters
    assert set(parameters) >= USUAL
    assert all(parameters[name].default is not inspect.Parameter.empty for name in USUAL)
    assert "R2D2TextToImagePipeline.from_pretrained" in R2D2TextToImagePipeline.__call__.__doc__


def test_components(pipeline):
    names = {"text_encoder", "tokenizer", "unet", "scheduler", "vae", "ranker", "ranker_processor"}
    assert set(pipeline.components) == names
    assert set(R2D2TextToImagePipeline(**pipeline.components).components) == names
    again = R2D2TextToImagePipeline.from_pipe(pipeline)
    assert again.unet is pipeline.unet


def test_optional_components_stay_away(tmp_path):
    pipeline = tiny_pipeline(ranker=True)
    for name in pipeline._optional_components:
        setattr(pipeline, name, None)
    expected = pipeline("山", generator=generator(), **CALL).images
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    loaded = R2D2TextToImagePipeline.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) is None for name in pipeline._optional_components)
    torch.testing.assert_close(loaded("山", generator=generator(), **CALL).images, expected)


def test_prompts_encoded_apart_from_the_rest(pipeline):
    """A pipeline of text encoder and tokenizer encodes; one without both draws from what it gave."""
    parts = pipeline.components
    nothing = dict.fromkeys(parts)
    text = R2D2TextToImagePipeline(
        **{**nothing, "text_encoder": parts["text_encoder"], "tokenizer": parts["tokenizer"]}
    )
    with torch.no_grad():
        outputs = text.encode_prompt("一只猫", negative_prompt="山")
    # diffusers' own tests read the names off the return statement
    source = textwrap.dedent(inspect.getsource(R2D2TextToImagePipeline.encode_prompt))
    (returned,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return)]
    names = [name.id for name in returned.value.elts]
    assert names == ["prompt_embeds", "negative_prompt_embeds"]
    rest = R2D2TextToImagePipeline(**{**parts, "text_encoder": None, "tokenizer": None})
    embeds = dict(zip(names, outputs, strict=True))
    expected = pipeline("一只猫", negative_prompt="山", generator=generator(), **CALL).images
    torch.testing.assert_close(rest(generator=generator(), **embeds, **CALL).images, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="pass prompt_embeds"):
        rest("一只猫", **CALL)


def test_callbacks_get_exactly_what_they_ask_for(pipeline):
    asked, guidance = list(pipeline._callback_tensor_inputs), []

    def callback(pipe, step, timestep, tensors):
        assert sorted(tensors) == sorted(asked)
        pipe._guidance_scale += 1
        guidance.append(pipe.guidance_scale)
        return tensors

    pipeline("山", guidance_scale=2.0, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=asked, **CALL)
    assert guidance == [3.0, 4.0]
    assert pipeline.num_timesteps == 2


def test_a_callback_may_end_guidance(pipeline):
    """`do_classifier_free_guidance` follows the scale, in the middle of a call too."""
    seen = []
    forward = pipeline.unet.forward

    def counting(sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipeline.unet.forward = counting

    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    pipeline("山", guidance_scale=2.0, callback_on_step_end=callback, **CALL)
    assert seen == [2, 1]
    assert not pipeline.do_classifier_free_guidance


def test_types(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    mixed = R2D2TextToImagePipeline.from_pretrained(
        tmp_path, torch_dtype={"unet": torch.bfloat16, "default": torch.float32}
    )
    assert mixed.unet.dtype == torch.bfloat16
    assert mixed.text_encoder.dtype == torch.float32
    images = mixed("山", generator=generator(), **CALL).images
    assert images.isfinite().all()
    expected = pipeline("山", generator=generator(), **CALL).images
    assert (images.float() - expected).abs().mean() < 0.05
    mixed.to(dtype=torch.float16)
    assert {mixed.unet.dtype, mixed.text_encoder.dtype} == {torch.float16}


def test_variants(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = R2D2TextToImagePipeline.from_pretrained(tmp_path, variant="fp16")
    state = loaded.unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipeline.unet.state_dict().items())
    with pytest.raises(ValueError, match="variant"):
        R2D2TextToImagePipeline.from_pretrained(tmp_path, variant="bf16")


def test_offload_order_names_the_parts(pipeline):
    offloaded = pipeline.model_cpu_offload_seq.split("->")
    assert set(offloaded) | set(pipeline._exclude_from_cpu_offload) == {"text_encoder", "unet", "vae", "ranker"}
    assert set(offloaded) <= set(pipeline.components)


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloading(way):
    """Hooks alone move weights: here from the CPU to the CPU, or from nowhere ("meta") to it at each layer's turn."""
    ranked = way == "model"
    pipeline = tiny_pipeline(latent=True, ranker=ranked)
    call = {**CALL, "num_images_per_prompt": 2, "rank_images": ranked}
    expected = pipeline("山", generator=generator(), **call)
    parts = [pipeline.text_encoder, pipeline.unet, pipeline.vae]
    if way == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
        assert all(isinstance(part._hf_hook, accelerate.hooks.CpuOffload) for part in parts)
        assert not hasattr(pipeline.ranker, "_hf_hook")
    else:  # as `enable_sequential_cpu_offload` does it, which would say "cpu:0" and accelerate knows only "cpu"
        for part in parts:
            accelerate.cpu_offload(part, torch.device("cpu"))
        assert pipeline.device.type == "meta"
    assert pipeline._execution_device.type == "cpu"
    hooks = [part._hf_hook for part in parts]
    for _ in range(2):
        got = pipeline("山", generator=generator(), **call)
        torch.testing.assert_close(got.images, expected.images, atol=1e-5, rtol=0)
        torch.testing.assert_close(got.scores, expected.scores, atol=1e-5, rtol=0)
    if way == "model":  # `maybe_free_model_hooks` puts new ones in their place, to begin the next call with
        assert not any(part._hf_hook is hook for part, hook in zip(parts, hooks, strict=True))


def test_progress_bar(pipeline):
    written = io.StringIO()
    pipeline.set_progress_bar_config(disable=False, file=written, desc="drawing")
    pipeline("山", **CALL)
    assert "drawing: 100%" in written.getvalue()
    assert " 2/2 " in written.getvalue()


def test_output_class(pipeline):
    output = pipeline("山", **CALL)
    assert isinstance(output, BaseOutput)
    assert output[0] is output["images"] is output.images
    assert output.to_tuple() == (output.images,)  # what is None is left out
    assert output.scores is None


def test_parts_have_types(pipeline, tmp_path, caplog):
    """diffusers compares what `from_pretrained` is handed with the signature, and warns."""
    types = R2D2TextToImagePipeline._get_signature_types()
    assert set(types) == set(pipeline.components)
    for name, part in pipeline.components.items():
        assert isinstance(part, types[name]), name
    pipeline.save_pretrained(tmp_path)
    logging.getLogger("diffusers").propagate = True
    R2D2TextToImagePipeline.from_pretrained(tmp_path, unet=tiny_unet())
    assert "Expected types" not in caplog.text
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    other = RobertaModel(RobertaConfig(vocab_size=60, **sizes))
    R2D2TextToImagePipeline.from_pretrained(tmp_path, text_encoder=other)
    assert "Expected types for text_encoder" in caplog.text


def test_device_map(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    mapped = R2D2TextToImagePipeline.from_pretrained(tmp_path, device_map="cpu")
    expected = pipeline("山", generator=generator(), **CALL).images
    torch.testing.assert_close(mapped("山", generator=generator(), **CALL).images, expected, atol=1e-5, rtol=0)


def test_layerwise_casting(pipeline):
    expected = pipeline("山", generator=generator(), **CALL).images
    pipeline.to(torch.bfloat16)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert pipeline.unet.mid_block.attentions[0].proj_in.weight.dtype == torch.float8_e4m3fn
    images = pipeline("山", generator=generator(), **CALL).images
    assert images.isfinite().all()
    assert (images.float() - expected).abs().mean() < 0.2

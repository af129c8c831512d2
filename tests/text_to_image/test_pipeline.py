"""Calls of the pipeline: conventions of diffusers, and the promise that a picture depends on its prompt and seed."""

import logging

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from PIL import Image

from modeling_r2d2 import R2D2TextToImagePipeline
from tests.helpers import tiny_model, tiny_processor
from tests.text_to_image.conftest import generator, tiny_pipeline, tiny_scheduler, tiny_unet

PROMPTS = ["一只猫", "两条红色的鱼在水", "山"]
CALL = {"num_inference_steps": 3, "output_type": "pt"}


def test_same_seed_same_image(either_pipeline):
    first = either_pipeline("一只猫", generator=generator(1), **CALL).images
    assert torch.equal(first, either_pipeline("一只猫", generator=generator(1), **CALL).images)
    assert not torch.allclose(first, either_pipeline("一只猫", generator=generator(2), **CALL).images, atol=1e-2)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler], ids=lambda s: s.__name__
)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_batch_equals_its_prompts_alone(either_pipeline, scheduler, guidance):
    pipeline = either_pipeline
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    call = {**CALL, "guidance_scale": guidance}
    together = pipeline(PROMPTS, generator=[generator(s) for s in range(3)], **call).images
    alone = [pipeline(text, generator=generator(s), **call).images for s, text in enumerate(PROMPTS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-2


def test_the_prompt_matters_and_padding_does_not(pipeline):
    same_noise = {**CALL, "guidance_scale": 1.0}
    cat, mountain = (pipeline(text, generator=generator(), **same_noise).images for text in ("一只猫", "山"))
    assert (cat - mountain).abs().max() > 1e-4
    states, _ = pipeline.encode_prompt("一只猫", do_classifier_free_guidance=False)
    assert states.shape == (1, 16, 32)
    assert (states[0, :5] != 0).any(dim=1).all()  # [CLS] 一 只 猫 [SEP]
    assert not states[0, 5:].any()
    shorter = pipeline(prompt_embeds=states[:, :5], generator=generator(), **same_noise).images
    torch.testing.assert_close(shorter, cat, atol=1e-5, rtol=0)


def test_states_are_those_of_the_text_tower(pipeline):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = tiny_model(), tiny_processor()
    tokens = processor(text=["两条红色的鱼"], return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    states, negative = pipeline.encode_prompt(["两条红色的鱼"])
    torch.testing.assert_close(states[:, : expected.shape[1]], expected, atol=1e-5, rtol=0)
    empty, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    assert torch.equal(negative, empty)


def test_guidance_by_hand(pipeline):
    """Two separate passes of the UNet and the textbook formula, step by step."""
    scheduler, scale = tiny_scheduler(), 3.5
    states, negative = pipeline.encode_prompt("山", negative_prompt="水")
    latents = torch.randn(1, 3, 8, 8, generator=generator(5))
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            passes = []
            for text in (states, negative):
                length = int((text != 0).any(dim=-1).sum())
                passes.append(pipeline.unet(latents, timestep, encoder_hidden_states=text[:, :length]).sample)
            noise = passes[1] + scale * (passes[0] - passes[1])
            latents = scheduler.step(noise, timestep, latents).prev_sample
    expected = (latents / 2 + 0.5).clamp(0, 1)
    got = pipeline("山", negative_prompt="水", guidance_scale=scale, generator=generator(5), **CALL).images
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)


def test_guidance_rescale_keeps_the_spread(pipeline):
    pipeline("山", **CALL)
    pipeline._guidance_scale, pipeline._guidance_rescale = 8.0, 1.0
    states, negative = pipeline.encode_prompt("山")
    sample, timestep = torch.randn(1, 3, 8, 8, generator=generator()), torch.tensor(500)
    with torch.no_grad():
        rescaled = pipeline._predict(sample, timestep, states, negative)
        mask = (states != 0).any(dim=-1)
        alone = pipeline.unet(sample, timestep, states, encoder_attention_mask=mask).sample
    assert rescaled.std().item() == pytest.approx(alone.std().item(), rel=1e-4)


def test_latents_embeds_and_output_types(either_pipeline):
    pipeline = either_pipeline
    noise = torch.randn(2, pipeline.unet.config.in_channels, 8, 8, generator=generator(3))
    base = pipeline(["山", "水"], latents=noise, **CALL).images
    states, negative = pipeline.encode_prompt(["山", "水"])
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": negative}
    torch.testing.assert_close(pipeline(latents=noise, **embeds, **CALL).images, base, atol=1e-5, rtol=0)
    size = 8 * pipeline.vae_scale_factor
    assert base.shape == (2, 3, size, size)
    steps = {"latents": noise, "num_inference_steps": 3}
    array = pipeline(["山", "水"], output_type="np", **steps).images
    np.testing.assert_allclose(array, base.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    pil_images = pipeline(["山", "水"], **steps).images
    assert isinstance(pil_images[1], Image.Image)
    assert np.abs(np.asarray(pil_images[1]) / 255 - array[1]).max() < 0.5 / 255 + 1e-4
    assert pipeline(["山", "水"], output_type="latent", **steps).images.shape == noise.shape
    (images,) = pipeline(["山", "水"], return_dict=False, latents=noise, **CALL)
    assert torch.equal(images, base)
    sized = pipeline("山", height=size // 2, width=size * 2, **CALL).images
    assert sized.shape == (1, 3, size // 2, size * 2)


def test_several_images_per_prompt_stand_together(pipeline):
    noise = torch.randn(4, 3, 8, 8, generator=generator(3))
    four = pipeline(["山", "水"], num_images_per_prompt=2, latents=noise, **CALL).images
    for place, text in enumerate(["山", "山", "水", "水"]):
        one = pipeline(text, latents=noise[place : place + 1], **CALL).images
        torch.testing.assert_close(four[place : place + 1], one, atol=2e-4, rtol=0)


def test_callback_sees_and_replaces(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        if step == 1:
            pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = pipeline(
        "山",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        **{**CALL, "output_type": "latent"},
    ).images
    assert not result.any()
    assert [entry[0] for entry in seen] == [0, 1]  # interrupted after the second of three
    assert seen[0][2] == ["latents", "prompt_embeds"]
    assert pipeline.num_timesteps == 3


def test_long_prompts_are_cut_with_a_warning(pipeline, caplog):
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.propagate = True
    logging.getLogger("modeling_r2d2").propagate = True
    with caplog.at_level(logging.WARNING):
        long = pipeline("猫" * 40, generator=generator(), **CALL).images
    assert "cut to 16 tokens: 1 of 1 texts" in caplog.text
    torch.testing.assert_close(long, pipeline("猫" * 14, generator=generator(), **CALL).images)


@pytest.mark.parametrize("rule", ["fused", "published"])
def test_ranking_returns_the_best_of_each_prompt(rule):
    pipeline = tiny_pipeline(ranker=True)
    pipeline.ranker.config.two_stage_score = rule
    noise = torch.randn(8, 3, 8, 8, generator=generator(3))
    call = {"num_inference_steps": 3, "num_images_per_prompt": 4, "latents": noise}
    every = pipeline(["一只猫", "红鱼"], **call).images
    best = pipeline(["一只猫", "红鱼"], rank_images=True, **call)
    model, processor = pipeline.ranker, pipeline.ranker_processor
    for place, text in enumerate(["一只猫", "红鱼"]):
        scores = []
        for image in every[4 * place : 4 * place + 4]:  # one pair at a time
            inputs = processor(images=image, text=text, return_tensors="pt")
            ids, mask, pixels = (inputs[name] for name in ("input_ids", "attention_mask", "pixel_values"))
            with torch.no_grad():
                output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
                match = model.match(ids, pixels, mask).match_probability
            cosine = output.text_embeds @ output.image_embeds.t()
            score = cosine + match if rule == "published" else cosine / model.temperature + match.logit()
            scores.append(score.item())
        assert np.ptp(scores) > 1e-4, "the test needs scores that differ"
        assert best.scores[place].item() == pytest.approx(max(scores), abs=1e-3)
        expected = every[4 * place + int(np.argmax(scores))]
        assert np.array_equal(np.asarray(best.images[place]), np.asarray(expected))


def test_ranking_by_cosine_where_there_is_no_ranker():
    pipeline = tiny_pipeline()
    pipeline.ranker, pipeline.ranker_processor = tiny_model(ranker=False), tiny_processor()
    output = pipeline("一只猫", num_images_per_prompt=2, rank_images=True, num_inference_steps=2)
    assert len(output.images) == 1
    assert -1 <= output.scores.item() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either prompt or prompt_embeds"),
        ({"prompt": "山", "prompt_embeds": torch.ones(1, 4, 32)}, "either prompt or prompt_embeds"),
        ({"prompt": 3}, "not int"),
        ({"prompt": []}, "at least one string"),
        ({"prompt": ["山", 3]}, "strings only"),
        ({"prompt": "山", "height": 0, "width": -4}, "positive multiples"),
        ({"prompt": ["山", "水"], "negative_prompt": ["猫"] * 3}, "3 negative prompts for 2"),
        ({"prompt": ["山", "水"], "generator": [generator()]}, "1 generators for 2"),
        ({"prompt": "山", "latents": torch.ones(1, 3, 4, 4)}, r"this call needs \(1, 3, 8, 8\)"),
        ({"prompt": "山", "callback_on_step_end_tensor_inputs": ["noise"]}, "not \\['noise'\\]"),
        ({"prompt": "山", "output_type": "jpeg"}, "output_type"),
        ({"prompt": "山", "rank_images": True}, "needs a ranker"),
        ({"prompt": "山", "timesteps": [5], "sigmas": [1.0]}, "not both"),
        ({"prompt": "山", "sigmas": [1.0]}, "takes no sigmas"),
        (
            {"prompt_embeds": torch.ones(1, 4, 32), "negative_prompt_embeds": torch.ones(1, 5, 32)},
            "must have one shape",
        ),
        (
            {"prompt": "山", "negative_prompt_embeds": torch.ones(1, 5, 32)},
            r"negative_prompt_embeds and the states of prompt must have one shape, got \(1, 5, 32\) and \(1, ",
        ),
        (
            {"prompt": ["山", "水"], "negative_prompt_embeds": torch.ones(1, 16, 32)},
            "negative_prompt_embeds and .* shape",
        ),
        ({"prompt": "山", "negative_prompt_embeds": torch.ones(1, 16, 31)}, r"negative_prompt_embeds .* tokens, 32\)"),
        ({"prompt_embeds": torch.ones(16, 32)}, "prompt_embeds is of shape"),
        ({"prompt": "山", "negative_prompt": "水", "negative_prompt_embeds": torch.ones(1, 4, 32)}, "negative_prompt"),
    ],
)
def test_wrong_calls(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(num_inference_steps=1, **arguments)


def test_parts_that_do_not_fit(pipeline):
    parts = pipeline.components
    with pytest.raises(ValueError, match="24 wide, the text encoder gives 32"):
        R2D2TextToImagePipeline(**{**parts, "unet": tiny_unet(cross_attention_dim=24)})
    with pytest.raises(ValueError, match="4 input channels"):
        R2D2TextToImagePipeline(**{**parts, "unet": tiny_unet(in_channels=4)})
    with pytest.raises(ValueError, match="ranker_processor"):
        R2D2TextToImagePipeline(**{**parts, "ranker": tiny_model()})


def test_attention_slicing_changes_nothing(pipeline):
    expected = pipeline("山", generator=generator(), **CALL).images
    pipeline.enable_attention_slicing()
    torch.testing.assert_close(pipeline("山", generator=generator(), **CALL).images, expected, atol=1e-4, rtol=0)


def test_sequential_parts_of_a_call_leave_training_modules_alone(pipeline):
    states, _ = pipeline.encode_prompt("山", do_classifier_free_guidance=False)
    assert not pipeline("山", **CALL).images.requires_grad
    assert states.requires_grad  # encode_prompt on its own can be trained through

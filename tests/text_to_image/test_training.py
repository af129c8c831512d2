"""The training loop: exact continuation, what trains and what does not, adapting a foreign checkpoint."""

import json
import os
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image

from modeling_r2d2 import R2D2TextToImagePipeline
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.files.writing import is_partial
from modeling_r2d2.text_to_image import training
from modeling_r2d2.text_to_image.components import adapt_pretrained, choose_trained, is_own_pipeline, merge_lora
from modeling_r2d2.text_to_image.data import CaptionedImages, CaptionFeatures, batches, sample_order
from modeling_r2d2.text_to_image.settings import TextToImageSettings
from modeling_r2d2.text_to_image.training import _Run, train_text_to_image
from tests.helpers import die, killed, tiny_image, tiny_model, tiny_processor
from tests.text_to_image.conftest import generator, tiny_pipeline, tiny_unet, tiny_vae

TEXTS = ["一只猫", "马", "两条红色的鱼", "小船", "山", "天地人", "黄鸟"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven pictures in a JSONL, one with two captions."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, text in enumerate(TEXTS):
        tiny_image(number).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "text": [text, "红" + text] if number == 2 else text})
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pairs(data):
    return load_pairs(data)


def settings(output, **changes) -> TextToImageSettings:
    base = {
        "max_steps": 4,
        "per_device_train_batch_size": 3,
        "resolution": 8,
        "learning_rate": 1e-2,
        "save_steps": 0,
        "logging_steps": 1,
    }
    return TextToImageSettings(output=output, **{**base, **changes})


def weights(pipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipeline.unet, "text": pipeline.text_encoder}
    return {f"{part}.{k}": v.clone() for part, module in parts.items() for k, v in module.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "flip": 0.5, "channels_last": True},
        {"text_encoder": "all"},
        {"train": "lora", "text_encoder": "lora", "lora_rank": 2},
    ],
    ids=["plain", "accumulated", "text-encoder", "lora"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(pairs, tmp_path, changes, monkeypatch):
    changes = {**changes, "save_steps": 2}
    whole = tiny_pipeline()
    history = train_text_to_image(whole, pairs, settings(tmp_path / "whole", **changes))["history"]

    one_step, steps = _Run._one_step, []

    def interrupted(self, feed):
        if self.step == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        return one_step(self, feed)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_text_to_image(tiny_pipeline(), pairs, settings(tmp_path / "broken", **changes))
    assert steps == [0, 1, 2]
    torch.manual_seed(123)  # whatever the new process did before
    resumed = tiny_pipeline()
    again = train_text_to_image(resumed, pairs, settings(tmp_path / "broken", resume=True, **changes))["history"]
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in history]
    assert not changed(weights(whole), weights(resumed))
    assert changed(weights(tiny_pipeline()), weights(resumed))


def test_the_written_pipeline_has_the_averaged_weights(pairs, tmp_path):
    pipeline = tiny_pipeline()
    before = weights(pipeline)
    result = train_text_to_image(pipeline, pairs, settings(tmp_path / "out", ema_decay=0.0, max_steps=3))
    plain = weights(pipeline)
    averaged = tiny_pipeline()
    train_text_to_image(averaged, pairs, settings(tmp_path / "averaged", ema_decay=0.9, max_steps=3))
    assert changed(plain, weights(averaged))
    # the text encoder is frozen; all else trains
    assert changed(before, plain) == {name for name in before if name.startswith("unet.")}
    loaded = R2D2TextToImagePipeline.from_pretrained(tmp_path / "out")
    assert not changed(plain, weights(loaded))
    assert result["steps"] == 3
    assert json.loads((tmp_path / "out" / "training.json").read_text())["history"] == result["history"]


def test_it_learns(pairs, tmp_path):
    few = pairs.select([0, 1])
    run = settings(tmp_path / "out", max_steps=60, per_device_train_batch_size=8, caption_dropout=0.0, logging_steps=10)
    history = train_text_to_image(tiny_pipeline(), few, run)["history"]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_latent_space_trains_the_unet_alone(pairs, tmp_path):
    pipeline = tiny_pipeline(latent=True)
    vae = {name: value.clone() for name, value in pipeline.vae.state_dict().items()}
    before = weights(pipeline)
    train_text_to_image(pipeline, pairs, settings(tmp_path / "out", resolution=16, max_steps=2))
    assert {name.split(".")[0] for name in changed(before, weights(pipeline))} == {"unet"}
    assert not changed(vae, pipeline.vae.state_dict())


def test_lora_is_merged_and_saved(pairs, tmp_path):
    pipeline = tiny_pipeline()
    before = weights(pipeline)
    train_text_to_image(pipeline, pairs, settings(tmp_path / "out", train="lora", text_encoder="lora", lora_rank=2))
    moved = changed(before, weights(pipeline))
    attention = (".to_q.", ".to_k.", ".to_v.", ".to_out.0.", ".query.", ".key.", ".value.")
    assert moved
    assert all(any(part in name for part in attention) and name.endswith("weight") for name in moved)
    assert any(name.startswith("text.") for name in moved)
    for name in moved:  # rank 2 updates
        difference = weights(pipeline)[name] - before[name]
        assert torch.linalg.matrix_rank(difference.double(), atol=1e-5) <= 2
    loaded = R2D2TextToImagePipeline.from_pretrained(tmp_path / "out")
    assert not changed(weights(pipeline), weights(loaded))
    other = tiny_pipeline()  # as before training: the adapters alone, of both parts, do the rest
    other.load_lora_weights(str(tmp_path / "out"), weight_name="pytorch_lora_weights.safetensors")
    call = {"num_inference_steps": 2, "output_type": "pt"}
    images = other("山", generator=generator(), **call).images
    torch.testing.assert_close(images, pipeline("山", generator=generator(), **call).images, atol=1e-3, rtol=0)
    assert all(len(names) == 1 for names in other.get_list_adapters().values())
    assert set(other.get_list_adapters()) == {"unet", "text_encoder"}


def test_merging_by_hand():
    pipeline = tiny_pipeline()
    choose_trained(pipeline, "lora", "frozen", 2)
    layer = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b, generator=generator())
    expected = layer.base_layer.weight + b @ a  # alpha / rank = 1
    assert merge_lora(pipeline.unet) > 4
    merged = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    assert type(merged) is torch.nn.Linear
    torch.testing.assert_close(merged.weight, expected)
    assert merge_lora(pipeline.unet) == 0


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A Stable-Diffusion-shaped checkpoint: its text states are 24 wide, and English."""
    folder = tmp_path_factory.mktemp("sd")
    tiny_unet(in_channels=4, out_channels=4, cross_attention_dim=24).save_pretrained(folder / "unet")
    tiny_vae().save_pretrained(folder / "vae")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def test_adapting_stable_diffusion(stable_diffusion, data, tmp_path):
    """The documented commands: projection and cross-attention first, then everything, from the command line."""
    from examples.train_text_to_image import main

    r2d2 = tmp_path / "r2d2"
    tiny_model().save_pretrained(r2d2)
    tiny_processor().save_pretrained(r2d2)
    common = ["--data", str(data), "--resolution", "16", "--batch-size", "3", "--steps", "2", "--save-every", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    main([*common, "--r2d2", str(r2d2), "--pretrained", str(stable_diffusion), "--output", str(first)])
    adapted = R2D2TextToImagePipeline.from_pretrained(first)
    assert is_own_pipeline(first)
    assert adapted.scheduler.config.prediction_type == "epsilon"
    old = tiny_unet(in_channels=4, out_channels=4, cross_attention_dim=24).state_dict()
    new = adapted.unet.state_dict()
    assert set(new) - set(old) == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert all(".attn2." in name for name in moved)
    assert adapted("山", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)

    main([*common, "--pretrained", str(first), "--train", "all", "--output", str(second)])
    final = R2D2TextToImagePipeline.from_pretrained(second).unet.state_dict()
    moved = {name for name in final if not torch.equal(final[name], new[name])}
    assert "conv_in.weight" in moved
    assert "encoder_hid_proj.weight" in moved


def test_checkpoints_that_cannot_be_adapted(stable_diffusion, tmp_path):
    parts = tiny_pipeline()
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="flow matching"):
        adapt_pretrained(tmp_path, parts.text_encoder, parts.tokenizer)
    DDIMScheduler().save_pretrained(tmp_path / "xl" / "scheduler")
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    tiny_unet(**extra, projection_class_embeddings_input_dim=8).save_pretrained(tmp_path / "xl" / "unet")
    with pytest.raises(ValueError, match="more than text states"):
        adapt_pretrained(tmp_path / "xl", parts.text_encoder, parts.tokenizer)
    assert not is_own_pipeline(stable_diffusion)


def test_nothing_is_overwritten_by_accident(pairs, tmp_path):
    run = settings(tmp_path, max_steps=2, save_steps=1, save_total_limit=1)
    train_text_to_image(tiny_pipeline(), pairs, run)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(FileExistsError, match="--resume"):
        train_text_to_image(tiny_pipeline(), pairs, settings(tmp_path, max_steps=2))
    with pytest.raises(ValueError, match="batch_size 3, this run has 2"):
        train_text_to_image(
            tiny_pipeline(), pairs, settings(tmp_path, max_steps=2, per_device_train_batch_size=2, resume=True)
        )
    for change, message in (
        ({"learning_rate": 2e-3}, "learning_rate .*, this run has 0.002"),
        ({"caption_dropout": 0.5}, "caption_dropout .*, this run has 0.5"),
        ({"seed": 5}, "seed 0, this run has 5"),
        ({"max_steps": 3}, "max_steps 2, this run has 3"),
    ):
        with pytest.raises(ValueError, match=message):
            train_text_to_image(tiny_pipeline(), pairs, settings(tmp_path, **{"max_steps": 2, **change}, resume=True))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    pipeline = tiny_pipeline()
    again = train_text_to_image(pipeline, pairs, settings(tmp_path, max_steps=2, resume=True, logging_steps=1))
    assert again["steps"] == 2  # a finished run is left alone
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not changed(weights(pipeline), weights(R2D2TextToImagePipeline.from_pretrained(tmp_path)))
    train_text_to_image(tiny_pipeline(), pairs, settings(tmp_path, max_steps=1, overwrite=True))
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(ValueError, match="nothing to resume: .* holds no checkpoint"):
        train_text_to_image(tiny_pipeline(), pairs, settings(tmp_path, resume=True))


def test_others_files_in_the_folder_of_a_run(pairs, tmp_path):
    """They survive a run that replaces another; in the place of ours they stop it before it begins."""
    output = tmp_path / "out"

    def put(*names):
        for name in names:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text("mine")

    put("notes.txt")
    with pytest.raises(FileExistsError, match="something else"):
        train_text_to_image(tiny_pipeline(), pairs, settings(output, max_steps=1))
    (output / "notes.txt").unlink()
    before = os.umask(0o022)
    try:
        train_text_to_image(tiny_pipeline(), pairs, settings(output, max_steps=2, save_steps=1, save_total_limit=1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.rglob("*") if path.is_file()} == {0o644}
    put("vectors.npy", "samples/holiday.png", "checkpoint-2/notes.txt", "checkpoint-best/weights", "unet/notes")
    for name in ("samples", "checkpoint-2", "checkpoint-best"):
        with pytest.raises(FileExistsError, match=f"{name} is no"):
            train_text_to_image(tiny_pipeline(), pairs, settings(output, max_steps=1, overwrite=True))
        shutil.move(output / name, tmp_path / name)
    train_text_to_image(tiny_pipeline(), pairs, settings(output, max_steps=1, overwrite=True))
    assert (output / "vectors.npy").read_text() == (output / "unet" / "notes").read_text() == "mine"
    assert not list(output.glob("checkpoint-*"))


def test_killed_while_a_checkpoint_or_the_pipeline_is_written(pairs, tmp_path, monkeypatch):
    run = settings(tmp_path, max_steps=2, save_steps=1)
    for place, name in ((training, "mark_complete"), (R2D2TextToImagePipeline, "save_pretrained")):

        def interrupted(place=place, name=name):
            monkeypatch.setattr(place, name, die)
            train_text_to_image(tiny_pipeline(), pairs, replace(run, overwrite=True))

        assert killed(interrupted)
        assert [path for path in tmp_path.rglob("*") if is_partial(path)]
        train_text_to_image(tiny_pipeline(), pairs, replace(run, overwrite=True))
        assert not [path for path in tmp_path.rglob("*") if is_partial(path)]
        R2D2TextToImagePipeline.from_pretrained(tmp_path)


def test_a_diverging_run_stops(pairs, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.unet.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"step 1: the run has diverged, .*conv_in\.weight"):
        train_text_to_image(pipeline, pairs, settings(tmp_path / "out"))


def test_schedulers_that_cannot_train(pairs, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="alphas_cumprod"):
        train_text_to_image(pipeline, pairs, settings(tmp_path / "out"))


def test_sheets_while_training_change_nothing(pairs, tmp_path):
    plain, drawing = tiny_pipeline(), tiny_pipeline()
    train_text_to_image(plain, pairs, settings(tmp_path / "plain", max_steps=3))
    sheets = {"sample_every": 1, "sample_prompts": ("一只猫",), "sample_seeds": 1, "sample_steps": 1}
    train_text_to_image(drawing, pairs, settings(tmp_path / "drawing", max_steps=3, **sheets))
    assert not changed(weights(plain), weights(drawing))
    assert len(list((tmp_path / "drawing" / "samples").glob("*.png"))) == 3


def test_the_clock_ends_a_run(pairs, tmp_path):
    run = settings(tmp_path / "out", max_steps=10_000, max_minutes=1e-9)
    assert train_text_to_image(tiny_pipeline(), pairs, run)["steps"] == 1


def test_learning_rate():
    run = TextToImageSettings(output="x", learning_rate=2.0, warmup=0.1, cooldown=0.5)
    rates = [run.learning_rate_at(share) for share in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"caption_dropout": 1.5}, "0..1"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma"),
        ({"train": "some"}, "cross_attention"),
        ({"sample_every": 5}, "sample_prompts"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        TextToImageSettings(output="x", **wrong)


class TestData:
    def test_order_is_endless_and_begins_anywhere(self):
        whole = sample_order(0, 50, 7, seed=3)
        assert [sorted(whole[start : start + 7]) for start in range(0, 49, 7)] == [list(range(7))] * 7
        assert whole[:7] != whole[7:14]
        for start in (0, 5, 13, 21):
            assert sample_order(start, 20, 7, seed=3) == whole[start : start + 20]
        assert sample_order(0, 50, 7, seed=4) != whole

    def test_processes_share_the_batches(self, pairs):
        def texts(feed, count):
            return [next(feed)["texts"] for _ in range(count)]

        whole = texts(batches(pairs, 8, 4), 4)
        parts = [texts(batches(pairs, 8, 2, rank=rank, world=2), 4) for rank in (0, 1)]
        assert whole == [a + b for a, b in zip(*parts, strict=True)]
        assert texts(batches(pairs, 8, 4, first=2), 2) == whole[2:]

    def test_a_stream_begins_late_too(self, data):
        stream = load_pairs(data, streaming=True)
        whole = batches(stream, 8, 3)
        expected = [next(whole) for _ in range(5)]  # two passes
        late = batches(load_pairs(data, streaming=True), 8, 3, first=3)
        for batch in expected[3:]:
            got = next(late)
            assert got["texts"] == batch["texts"]
            assert torch.equal(got["pixels"], batch["pixels"])
        assert {text for batch in expected for texts in batch["texts"] for text in texts} >= set(TEXTS)

    @pytest.mark.parametrize("cache_mb", [0, 10])
    def test_images_are_squares_of_the_center(self, pairs, cache_mb):
        images = CaptionedImages(pairs, 8, cache_mb)
        assert images.in_memory == bool(cache_mb)
        for _ in range(2):  # the second time from memory
            sample = images[2]
            image = pairs.image(2)  # 40 × 30
            expected = image.resize((8, 8), Image.Resampling.BICUBIC, box=(5, 0, 35, 30))
            assert np.array_equal(sample["pixels"].permute(1, 2, 0).numpy(), np.asarray(expected))
            assert sample["texts"] == ["两条红色的鱼", "红两条红色的鱼"]

    def test_captions_of_a_closed_set_are_encoded_once(self):
        calls = []

        def encode(texts):
            calls.append(list(texts))
            return torch.tensor([[[float(len(text))]] for text in texts])

        features = CaptionFeatures(encode, ["aa", "b", "aa"])
        seen = len(calls)
        assert features(["b", "", "aa", "b"]).flatten().tolist() == [1, 0, 2, 1]
        assert len(calls) == seen
        too_large = CaptionFeatures(encode, ["aa", "b"], cache_mb=0)
        assert too_large(["aa"]).item() == 2
        assert len(calls) == seen + 2


def test_prompts_reach_the_loss(pairs, tmp_path):
    """A caption changes the loss, unless every caption is dropped."""
    losses = {}
    for dropout in (0.0, 1.0):
        run = _Run(tiny_pipeline(), pairs, settings(tmp_path / str(dropout), caption_dropout=dropout), _Silent())
        batch = next(batches(pairs, 8, 3))
        losses[dropout] = run._loss(batch, 0).item()
        renamed = {**batch, "texts": [["山"]] * 3}
        assert (run._loss(renamed, 0).item() == losses[dropout]) == (dropout == 1.0)
    assert losses[0.0] != losses[1.0]


class _Silent:
    def print(self, *args, **kwargs):
        pass


def test_loading_what_was_trained_by_trust(pairs, tmp_path):
    pipeline = tiny_pipeline()
    train_text_to_image(pipeline, pairs, settings(tmp_path / "out", max_steps=1))
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert not changed(weights(pipeline), weights(loaded))

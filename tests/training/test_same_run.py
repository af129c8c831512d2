"""A resumed run is the same run, or is refused by name; a finished one is left alone; one run writes to a folder."""

import copy
import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import set_seed

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.finetuning import FinetuningSettings
from modeling_r2d2.inference.identity import weights_digest
from modeling_r2d2.jobs.same_run import describe_data, only_run, plain
from modeling_r2d2.training.pretraining import build_trainer, pretrain
from modeling_r2d2.training.recipes import Recipe
from tests.tiny import tiny_config
from tests.training.test_trainer import Colors, assert_equal, processor, settings, weights  # noqa: F401

RECIPE = Recipe(target_guided=None, feature_guided=FeatureGuidedSettings())


class OtherCaptions(Colors):
    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "text": "色的图片"}


def model(**config) -> R2D2ForPreTraining:
    set_seed(0)
    return R2D2ForPreTraining(tiny_config("clip", **config))


def options(folder, **changes):
    return settings(
        folder, **{"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 1, "recipe": RECIPE, **changes}
    )


@pytest.fixture(scope="module")
def finished(processor, tmp_path_factory):  # noqa: F811
    """A run of four steps with a checkpoint at each, and what it ended with."""
    folder = tmp_path_factory.mktemp("run") / "out"
    run = pretrain(model(), processor, Colors(), options(folder))
    return folder, weights(run.model)


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same, killed after its third step, in another place."""
    folder = tmp_path / "moved"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "checkpoint-4")
    for name in ("trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    return folder


def resume(folder, processor, network=None, pairs=None, **changes):  # noqa: F811
    return pretrain(network or model(), processor, pairs or Colors(), options(folder, resume=True, **changes))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_finished_run_is_left_alone(finished, processor, caplog):  # noqa: F811
    folder, expected = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with caplog.at_level(logging.WARNING):
        run = resume(folder, processor)
    assert "is finished, step 4 of 4" in caplog.text
    assert run.state.global_step == 4
    assert_equal(weights(run.model), expected)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before


def test_a_run_that_was_killed_before_it_wrote_its_model_writes_it(finished, unfinished, processor):  # noqa: F811
    shutil.copytree(finished[0] / "checkpoint-4", unfinished / "checkpoint-4")
    run = resume(unfinished, processor)
    assert run.state.global_step == 4
    assert_equal(weights(run.model), finished[1])
    assert (unfinished / "model.safetensors").is_file()
    assert names(unfinished) == ["checkpoint-3", "checkpoint-4"]


def test_a_moved_run_goes_on_and_what_does_not_matter_may_change(finished, unfinished, processor):  # noqa: F811
    torch.manual_seed(99)
    os.utime(unfinished / "checkpoint-3", (2e9, 2e9))  # the clock went back: it is the newest by its time
    run = resume(unfinished, processor, logging_steps=2, save_steps=2, dataloader_num_workers=1)
    assert_equal(weights(run.model), finished[1])
    assert names(unfinished) == ["checkpoint-3", "checkpoint-4"]


def test_more_steps_are_another_schedule_and_reported(unfinished, processor, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING):
        run = resume(unfinished, processor, max_steps=5)
    assert caplog.text.count("lengthened from 4 to 5 steps") == 1
    assert run.state.global_step == 5
    assert "missing keys" not in caplog.text  # the MLM head's weights are the text tower's, and held once


def test_a_run_that_is_refused_is_not_called_lengthened(unfinished, processor, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="learning_rate"):
        resume(unfinished, processor, max_steps=5, learning_rate=2e-3)
    assert "lengthened" not in caplog.text


def test_weights_that_a_checkpoint_lacks_are_still_named(processor, tmp_path, caplog):  # noqa: F811
    trainer = build_trainer(model(), processor, Colors(), options(tmp_path / "out"))
    held = trainer.model.state_dict()
    shared = trainer.model._tied_weights_keys
    result = trainer.model.load_state_dict({k: v for k, v in held.items() if k not in {*shared, "temperature"}}, False)
    with caplog.at_level(logging.WARNING):
        trainer._issue_warnings_after_load(result)
    assert "missing keys in the checkpoint model loaded: ['temperature']" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0, this run has 1"),
        ({"learning_rate": 2e-3}, "learning_rate 0.001, this run has 0.002"),
        ({"max_steps": 3}, "max_steps 4, this run has 3"),
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size 4, this run has 8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1, this run has 2"),
        ({"weight_decay": 0.5}, "weight_decay 0.05, this run has 0.5"),
        ({"max_grad_norm": 0.5}, "max_grad_norm 1.0, this run has 0.5"),
        ({"warmup_steps": 0.5}, "warmup_steps 0.05, this run has 0.5"),
        ({"mask_ratio": 0.3}, "mask_ratio 0.15, this run has 0.3"),
        ({"augmentation": None, "augment": False}, "augmentation "),
        ({"recipe": replace(RECIPE, momentum=0.9)}, "momentum.limit 0.995, this run has 0.9"),
        ({"recipe": replace(RECIPE, target_guided=TargetGuidedSettings())}, "distillation"),
        ({"recipe": None}, "model.config.fgd_prototypes "),
        ({"arguments": {"disable_tqdm": True, "use_cpu": True, "bf16": True}}, "bf16 False, this run has True"),
        ({"arguments": {"disable_tqdm": True, "use_cpu": True, "adam_beta2": 0.98}}, "adam_beta2 0.999, this run has"),
        ({"pairs": OtherCaptions()}, "data.texts "),
        ({"network": {"temperature_init_value": 0.1}}, "temperature_init_value 0.07, this run has 0.1"),
        ({"network": {"fgr_weight": 2.0}}, "model.config.fgr_weight 1.0, this run has 2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_another_run_is_refused_by_name(changes, message, unfinished, processor):  # noqa: F811
    network = model(**changes.pop("network")) if "network" in changes else None
    with pytest.raises(ValueError, match="was made with") as error:
        resume(unfinished, processor, network, changes.pop("pairs", None), **changes)
    assert message in str(error.value)
    assert names(unfinished) == ["checkpoint-3"]


def test_other_pixels_of_the_same_files_are_another_run(unfinished, processor):  # noqa: F811
    """Put on another colour, or read as stored."""
    white, lying = Colors(), copy.deepcopy(processor)
    white.background = "white"
    lying.image_processor.exif_transpose = False
    with pytest.raises(ValueError, match="data.background None, this run has white"):
        resume(unfinished, processor, pairs=white)
    with pytest.raises(ValueError, match=r"exif_transpose True, this run has False"):
        resume(unfinished, lying)
    assert names(unfinished) == ["checkpoint-3"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "distillation.safetensors"])
def test_a_checkpoint_that_lacks_a_part_is_not_resumed(name, unfinished, processor, caplog):  # noqa: F811
    last = unfinished / "checkpoint-3"
    (last / name).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3 is damaged or was cut off"):
        resume(unfinished, processor)
    trainer = build_trainer(model(), processor, Colors(), options(unfinished))
    with pytest.raises(ValueError, match=r"checkpoint-3 is not complete"):
        trainer.train(resume_from_checkpoint=str(last))


def test_the_last_whole_checkpoint_is_taken_and_named(finished, unfinished, processor, caplog):  # noqa: F811
    shutil.copytree(finished[0] / "checkpoint-4", unfinished / "checkpoint-4")
    with (unfinished / "checkpoint-4" / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    with caplog.at_level(logging.WARNING):
        run = resume(unfinished, processor)
    assert "checkpoint-4 is damaged" in caplog.text
    assert "goes on from" in caplog.text
    assert_equal(weights(run.model), finished[1])
    assert (unfinished / "checkpoint-4" / "optimizer.pt").stat().st_size > 100
    assert (unfinished / "checkpoint-4-kept-1" / "optimizer.pt").stat().st_size == 100


def test_a_checkpoint_without_optimizer_by_choice(unfinished, processor):  # noqa: F811
    """`save_only_model`: it is whole, and cannot be resumed."""
    folder = unfinished / "checkpoint-3"
    (folder / "optimizer.pt").unlink()
    held = json.loads((folder / "complete.json").read_text())
    del held["files"]["optimizer.pt"]
    (folder / "complete.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"it has no optimizer\.pt"):
        resume(unfinished, processor)


def test_two_runs_in_one_folder(unfinished, processor):  # noqa: F811
    with only_run(unfinished), pytest.raises(OSError, match="another run is writing"):
        resume(unfinished, processor)


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), only_run(tmp_path / "new"):
        raise ValueError("no")
    assert not (tmp_path / "new").exists()


def test_data_are_known_by_their_texts():
    first, other = describe_data(Colors()), describe_data(OtherCaptions())
    assert first["pairs"] == other["pairs"] == 24
    assert first["texts"] != other["texts"]
    assert describe_data(Colors()) == first


def test_weights_are_known_whatever_the_threads():
    network, other = model(), model()
    assert weights_digest(network) == weights_digest(other)
    other.text_projection.weight.data[0, 0] += 1e-6
    assert weights_digest(network) != weights_digest(other)
    assert weights_digest(network, ("text_projection",)) == weights_digest(other, ("text_projection",))


def test_settings_as_json(tmp_path):
    held = json.loads(json.dumps(plain(FinetuningSettings(output=tmp_path / "out", rates={"text_model": 0.1}))))
    assert held["output"] == "out"
    assert held["rates"] == {"text_model": 0.1}

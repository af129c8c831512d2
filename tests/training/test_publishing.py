"""A run that publishes its teacher: what the model gets at the end, how it is evaluated, and resuming."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.cli import app
from modeling_r2d2.distillation import MomentumTeacher
from modeling_r2d2.jobs.record import RunRecord
from tests.cli.test_cli import arguments, data  # noqa: F401 (a fixture)
from tests.distillation.runs import STEPS, trainer
from tests.tiny import tiny_batch, tiny_config

TIED = "mlm_head.decoder.weight"
RANKER = ("image_joint_projection", "text_image", "image_text", "mlm_head")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_lent_and_given_back(dtype):
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config("resnet")).to(dtype)
    teacher = MomentumTeacher(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.train()(**{n: v.to(dtype) if v.is_floating_point() else v for n, v in tiny_batch().items()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with teacher.lent_to(model):
        lent = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    averaged = teacher.model.state_dict()
    averaged[TIED] = averaged["text_model.embeddings.word_embeddings.weight"]
    for name, value in lent.items():
        assert torch.equal(value, averaged[name].to(value.dtype) if name in averaged else before[name]), name
    assert {name for name in lent if name not in averaged} == {n for n in lent if n.startswith(RANKER)} - {TIED}


def averaged_by_hand(folder, first: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The moving average of the students in all checkpoints, from `first` on, which no step has made."""
    mean = {name: value.double().numpy() for name, value in first.items() if value.is_floating_point()}
    for step in range(1, STEPS + 1):
        student = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        m = min(0.9, (1 + step) / (10 + step))
        mean = {n: m * v + (1 - m) * student[n].double().numpy() for n, v in mean.items() if n in student}
    return mean


def test_the_teacher_is_what_is_saved(tmp_path):
    run = trainer(tmp_path, "r2d2", tower="resnet", publish="teacher", save_steps=1)
    first = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    run.save_model()
    expected = averaged_by_hand(tmp_path, first)
    published, student = (load_file(p / "model.safetensors") for p in (tmp_path, tmp_path / f"checkpoint-{STEPS}"))
    assert any(name.endswith("running_var") for name in published)
    for name, value in published.items():
        if name.startswith(RANKER):
            assert torch.equal(value, student[name]), name
        elif name in expected:
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    moved = [
        name for name in expected if name.startswith("vision_model") and not torch.equal(published[name], student[name])
    ]
    assert moved


def test_the_teacher_is_evaluated_too(tmp_path):
    run = trainer(tmp_path, "r2d2", publish="teacher", eval_strategy="steps", eval_steps=4, prediction_loss_only=True)
    run.train()
    entries = [entry for entry in run.state.log_history if any(name.startswith("eval") for name in entry)]
    assert [(entry["step"], "eval_teacher_loss" in entry) for entry in entries] == [
        *((4, False), (4, True), (8, False), (8, True))
    ]
    last = run.evaluate()  # of the model as it is published
    assert "eval_teacher_loss" not in last
    assert last["eval_loss"] == pytest.approx(entries[-1]["eval_teacher_loss"], rel=1e-6)
    assert last["eval_loss"] != pytest.approx(entries[-2]["eval_loss"], rel=1e-4)
    assert entries[-1]["eval_teacher_loss"] == pytest.approx(
        sum(entries[-1][f"eval_teacher_loss_{part}"] for part in ("gcpr", "fgr", "mlm")),
        rel=0.02,  # batches are of two sizes
    )


def test_evaluating_the_teacher_changes_nothing(tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "prediction_loss_only": True}
    for name in ("teacher", "student"):
        trainer(tmp_path / name, "r2d2", publish=name, **evaluated).train()
    place = f"checkpoint-{STEPS}/model.safetensors"
    first, second = (load_file(tmp_path / name / place) for name in ("teacher", "student"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("step", [3, STEPS])
def test_resumed_publishes_the_same(step, tmp_path):
    """Also where the run was cut off after its last checkpoint, before the model was written."""
    run = trainer(tmp_path / "whole", "r2d2", publish="teacher")
    run.train()
    name = f"checkpoint-{step}"
    shutil.copytree(tmp_path / "whole" / name, tmp_path / "part" / name)
    resumed = trainer(tmp_path / "part", "r2d2", publish="teacher")
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / name))
    expected = run.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    other = trainer(tmp_path / "part", "r2d2", publish="student")
    with pytest.raises(ValueError, match="made with publish teacher, this run has None"):
        other.train(resume_from_checkpoint=str(tmp_path / "part" / name))


def test_without_a_teacher_and_of_the_best(tmp_path):
    with pytest.raises(ValueError, match="there is no teacher to publish: train with a recipe that has one"):
        trainer(tmp_path, "r2d2", callbacks=[], publish="teacher")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
    with pytest.raises(ValueError, match="leave load_best_model_at_end out"):
        trainer(tmp_path, "r2d2", publish="teacher", **best)


def test_on_the_command_line(data):  # noqa: F811
    options = ("--distil", "--publish", "teacher", "--eval-data", str(data / "pairs.jsonl"), "--eval-every", "0")
    result = CliRunner().invoke(app, arguments(data, *options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "held out: teacher_" in result.output
    assert RunRecord.read(data / "run").published == "teacher"
    result = CliRunner().invoke(app, arguments(data, "--publish", "teacher", "--overwrite"))
    assert "no teacher to publish" in str(result.exception)

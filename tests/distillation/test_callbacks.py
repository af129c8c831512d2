"""The callbacks in the stock Trainer and in R2D2Trainer: what is defined for every turn a run can take."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from modeling_r2d2 import (
    FeatureGuidedDistillationCallback,
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
    R2D2Model,
    TargetGuidedDistillationCallback,
    TwoWayDistillationCallback,
)
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.distillation.callbacks import distillation_of
from modeling_r2d2.jobs.checkpoints import STATE_FILE, is_complete
from tests.distillation.runs import BATCH, STEPS, Pairs, callback, everything, trainer
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
KINDS = ("stock", "r2d2")


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_logged(kind, tmp_path):
    distillation = callback()
    run = trainer(tmp_path, kind, callbacks=[distillation])
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    for entry in logs:
        parts = [entry[name] for name in ("loss_tgd", "loss_fgr", "loss_mlm", "loss_fgd")]
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-4)
        assert "loss_gcpr" not in entry
        assert 0 < entry["queue_fill"] <= 1
        assert 0 < entry["queue_reliability"] <= 1
        assert -1 <= entry["teacher_agreement"] <= 1
        assert 0 < entry["teacher_entropy"] < 1
    assert [entry["alpha"] for entry in logs] == pytest.approx([min(0.4, 0.1 * s) for s in range(1, STEPS + 1)])
    assert logs[-1]["center_norm"] > 0
    assert logs[-1]["queue_fill"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_way_is_one_callback(kind, tmp_path):
    parts = {}
    for name, one in {
        "tgd": TargetGuidedDistillationCallback(queue_size=10, alpha_ramp=(0.0, 0.5)),
        "fgd": FeatureGuidedDistillationCallback(block=8),
        "none": None,
    }.items():
        run = trainer(tmp_path / name, kind, callbacks=[one] if one else [], max_steps=1)
        run.train()
        parts[name] = run.state.log_history[0].keys()
    assert "loss_tgd" in parts["tgd"]
    assert not {"loss_gcpr", "loss_fgd", "center_norm"} & parts["tgd"]
    assert "loss_fgd" in parts["fgd"]
    assert not {"loss_tgd", "alpha", "queue_fill"} & parts["fgd"]
    assert not {"loss_tgd", "loss_fgd", "teacher_agreement"} & parts["none"]


def test_two_callbacks_share_one_teacher_and_equal_the_two_way_one(tmp_path):
    two = [
        TargetGuidedDistillationCallback(queue_size=10, alpha_ramp=(0.0, 0.5), momentum=0.9),
        FeatureGuidedDistillationCallback(block=8, momentum=0.9),
    ]
    separate = trainer(tmp_path / "two", callbacks=two)
    separate.train()
    together = callback()
    one = trainer(tmp_path / "one", callbacks=[together])
    one.train()
    assert two[0].state is two[1].state
    assert_equal(everything(separate, two[0]), everything(one, together))


def test_callbacks_that_contradict(tmp_path):
    both = [callback(), TargetGuidedDistillationCallback(queue_size=4, momentum=0.9)]
    with pytest.raises(ValueError, match="two callbacks of this run bring target-guided distillation"):
        trainer(tmp_path, callbacks=both).train()
    other = [TargetGuidedDistillationCallback(queue_size=4), FeatureGuidedDistillationCallback(momentum=0.5)]
    with pytest.raises(ValueError, match="momenta differ"):
        trainer(tmp_path, callbacks=other).train()
    with pytest.raises(ValueError, match="either a TargetGuidedSettings or its fields"):
        TargetGuidedDistillationCallback(TargetGuidedSettings(), queue_size=4)


def test_the_model_is_left_as_it_was(tmp_path):
    run = trainer(tmp_path)
    before = list(run.model.state_dict())
    run.train()
    assert list(run.model.state_dict()) == before
    assert not run.model._forward_pre_hooks
    assert not run.model._forward_hooks
    assert distillation_of(run.model) is None
    names = {name for group in run.optimizer.param_groups for name in group.get("param_names", [])}
    assert not any("teacher" in name for name in names)
    assert sum(len(g["params"]) for g in run.optimizer.param_groups) == len(list(run.model.parameters()))


def test_models_without_teacher_targets_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.model = run.model_wrapped = R2D2ForImageTextMatching(tiny_config())
    with pytest.raises(TypeError, match="not R2D2ForImageTextMatching"):
        run.train()


def test_prd2_distils_both_ways(tmp_path):
    run = trainer(tmp_path, max_steps=2)
    run.model = run.model_wrapped = R2D2ForPreTraining(tiny_config(ranker=False, fgd_prototypes=48))
    run.train()
    logs = run.state.log_history[0]
    assert logs["loss"] == pytest.approx(logs["loss_tgd"] + logs["loss_fgd"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_come_with_the_trainer_and_stay_with_the_model(kind, tmp_path):
    """Made before the optimizer, trained, averaged, saved, and left behind by classes that do not read them."""
    distillation = FeatureGuidedDistillationCallback(block=8, momentum=0.9)
    run = trainer(tmp_path, kind, callbacks=[distillation], max_steps=2, weight_decay=0.0, save_strategy="no")
    heads = run.model.feature_heads
    assert run.model.config.fgd_prototypes == 16 * 24  # the narrower tower's width is the bottleneck
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    run.train()
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in heads.parameters()} <= trained
    teacher = distillation.state.teacher.model.feature_heads.state_dict()
    for name, value in heads.state_dict().items():
        assert not torch.equal(value, before[name]), name
        assert not torch.equal(teacher[name], before[name]), name
        assert not torch.equal(teacher[name], value), name
    run.model.save_pretrained(tmp_path / "saved")
    assert_equal(R2D2ForPreTraining.from_pretrained(tmp_path / "saved").feature_heads.state_dict(), heads.state_dict())
    for other in (R2D2Model, R2D2ForImageTextRetrieval, R2D2ForImageTextMatching, R2D2ForImageClassification):
        model, report = other.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not hasattr(model, "feature_heads")
        assert not report["unexpected_keys"]
    assert not R2D2ForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)[1][
        "unexpected_keys"
    ]


def test_a_model_without_heads_is_refused(tmp_path):
    """Where the callback came after the Trainer, or an optimizer before it."""
    late = trainer(tmp_path / "late", callbacks=[], max_steps=1)
    late.add_callback(callback())
    with pytest.raises(ValueError, match=r"heads of its own, which this model lacks.*fgd_prototypes=4096.*add_feature"):
        late.train()
    early = trainer(tmp_path / "early", callbacks=[], max_steps=1)
    optimizer = torch.optim.SGD(early.model.parameters(), lr=0.1)
    again = Trainer(
        early.model,
        early.args,
        train_dataset=early.train_dataset,
        callbacks=[callback()],
        optimizers=(optimizer, None),
    )
    assert not again.model.has_feature_heads
    with pytest.raises(ValueError, match="heads of its own, which this model lacks"):
        again.train()
    early.model.add_feature_heads(48)
    with pytest.raises(ValueError, match="this model has feature heads, of 48 prototypes"):
        early.model.add_feature_heads()


def test_feature_guided_needs_masked_texts(tmp_path):
    data = Pairs()
    del data.rows["masked_input_ids"], data.rows["mlm_labels"]
    with pytest.raises(ValueError, match="feature-guided distillation compares masked texts"):
        trainer(tmp_path, data=data).train()


def test_pairs_without_ids(tmp_path):
    data = Pairs()
    del data.rows["image_ids"]
    distillation = callback()
    trainer(tmp_path, data=data, callbacks=[distillation], max_steps=3, label_names=[]).train()
    assert (distillation.state.queue.candidates()[2] < 0).all()


@pytest.mark.parametrize("length", [{"max_steps": 10}, {"max_steps": -1, "num_train_epochs": 2}])
def test_schedules_follow_the_length_of_the_run(length, tmp_path):
    """18 pairs in batches of 4 are 10 steps in two passes."""
    run = trainer(tmp_path, callbacks=[TargetGuidedDistillationCallback(queue_size=4)], **length)
    run.train()
    logged = [(entry["alpha"], entry["teacher_momentum"]) for entry in run.state.log_history if "alpha" in entry]
    steps = np.arange(1, 11)
    expected = 0.4 * np.clip((steps - 1) / 3, 0, 1), (1 + steps) / (10 + steps)
    np.testing.assert_allclose(logged, np.stack(expected, axis=1), rtol=1e-6)


def test_the_queue_follows_the_size_of_the_data(tmp_path):
    """18 pairs are few: no queue, the candidates are the batch."""
    distillation = TargetGuidedDistillationCallback()
    trainer(tmp_path, callbacks=[distillation], max_steps=2).train()
    assert distillation.state.queue.slots == BATCH
    settings = TargetGuidedSettings()
    assert [settings.queue_of(pairs, 64) for pairs in (300, 1279, 1280, 10**6, 10**7, None)] == [
        *(0, 0, 64, 50_000, 65536, 65536)
    ]
    assert TargetGuidedSettings(queue_size=10).queue_of(18, 4) == 10


def test_short_last_batch(tmp_path):
    """18 pairs in batches of 4: every fifth holds two."""
    distillation = callback()
    trainer(tmp_path, callbacks=[distillation], max_steps=5).train()
    assert int(distillation.state.queue.written) == 18


def reference(accumulation: int, steps: int) -> dict[str, torch.Tensor]:
    """The run written out without Trainer: SGD, one full batch after the other."""
    torch.manual_seed(0)
    student = R2D2ForPreTraining(tiny_config(fgd_prototypes=48))
    student.train()
    targets, features = TargetGuidedSettings(queue_size=10), FeatureGuidedSettings(block=8)
    ramp = 0.5 * steps  # as `runs.callback` has it
    state = DistillationState(student, targets, features, BATCH, seed=42)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    rows, place = Pairs(16 * accumulation).rows, 0
    for step in range(steps):
        for _ in range(accumulation):
            batch = {name: value[place : place + BATCH] for name, value in rows.items()}
            place += BATCH
            teacher = state.targets(batch, step, student.current_temperature(), 0.4 * min(step / ramp, 1))
            (student(**batch, teacher=teacher).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
        state.commit(student, min(0.9, (2 + step) / (11 + step)))
    return {**{f"student.{n}": v for n, v in student.state_dict().items()}, **state.state_dict()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_does_what_the_loop_written_out_does(kind, accumulation, tmp_path, monkeypatch):
    from modeling_r2d2.model import pretraining_r2d2

    monkeypatch.setattr(pretraining_r2d2, "draw_hard_negatives", pretraining_r2d2.hardest_negatives)
    distillation = callback()
    run = trainer(
        tmp_path,
        kind,
        accumulation,
        [distillation],
        data=Pairs(16 * accumulation),
        max_steps=4,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        weight_decay=0.0,
        warmup_steps=0,
        train_sampling_strategy="sequential",
        save_strategy="no",
    )
    torch.manual_seed(0)
    run.model = run.model_wrapped = R2D2ForPreTraining(tiny_config(fgd_prototypes=48))
    run.train()
    expected, actual = reference(accumulation, 4), everything(run, distillation)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_evaluation_leaves_distillation_alone(tmp_path):
    seen = {"step": [], "evaluation": []}

    def copied() -> dict:
        return {name: value.clone() for name, value in distillation.state.state_dict().items()}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen["step"].append(copied())

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen["evaluation"].append(copied())

    distillation = callback()
    run = trainer(
        tmp_path,
        "r2d2",
        callbacks=[distillation, Watch()],
        eval_strategy="steps",
        eval_steps=1,
        prediction_loss_only=True,
    )
    run.train()
    assert len(seen["evaluation"]) == STEPS
    for before, after in zip(seen["step"], seen["evaluation"], strict=True):
        assert_equal(before, after)
    evaluated = next(entry for entry in run.state.log_history if "eval_loss" in entry)
    assert "eval_loss_gcpr" in evaluated  # without a teacher
    assert "eval_loss_tgd" not in evaluated


def test_skipped_steps_leave_the_teacher_alone(tmp_path, monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer

    skipped = {2, 5}
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append({name: value.clone() for name, value in distillation.state.state_dict().items()})

    distillation = callback()
    run = trainer(tmp_path, callbacks=[distillation, Watch()])
    monkeypatch.setattr(
        AcceleratedOptimizer, "step_was_skipped", property(lambda self: run.state.global_step in skipped)
    )
    run.train()
    for step in range(2, STEPS + 1):
        before, after = seen[step - 2], seen[step - 1]
        kept = ["center.images", "teacher.model.text_projection.weight"]
        assert all(torch.equal(before[name], after[name]) == (step in skipped) for name in kept)
        new = after["queue.reliability"] == 1  # written in this step and not aged since
        assert bool(new.any()) == (step in skipped)


def test_early_end(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    distillation = callback()
    run = trainer(tmp_path, callbacks=[distillation, Stop()])
    run.train()
    assert run.state.global_step == 3
    assert not run.model._forward_pre_hooks
    assert int(distillation.state.queue.written) == 3 * BATCH


def test_a_run_after_one_that_was_broken_off(tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    run = trainer(tmp_path / "broken", callbacks=[callback(), Break()])
    with pytest.raises(KeyboardInterrupt):
        run.train()
    distillation = callback()
    again = trainer(tmp_path / "again", callbacks=[distillation], max_steps=2)
    again.model = again.model_wrapped = run.model
    again.train()
    assert int(distillation.state.queue.written) == 2 * BATCH
    assert not run.model._forward_pre_hooks


def test_bfloat16(tmp_path):
    distillation = callback()
    run = trainer(tmp_path, callbacks=[distillation], max_steps=2, bf16=True)
    run.train()
    assert distillation.state.teacher.autocast == torch.bfloat16
    assert distillation.state.queue.images.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in distillation.state.teacher.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, accumulation, tmp_path):
    whole, part = callback(), callback()
    run = trainer(tmp_path / "whole", kind, accumulation, [whole])
    run.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    resumed = trainer(tmp_path / "part", kind, accumulation, [part])
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert_equal(everything(run, whole), everything(resumed, part))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_uninterrupted(kind, tmp_path):
    step = int(torch.randint(4, STEPS, ()))  # another one every time
    command = [sys.executable, "-m", "tests.distillation.runs", str(tmp_path / "killed"), kind, "1", str(step)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    whole, part = callback(), callback()
    run = trainer(tmp_path / "whole", kind, callbacks=[whole])
    run.train()
    resumed = trainer(tmp_path / "killed", kind, callbacks=[part])
    resumed.train(resume_from_checkpoint=True)
    assert_equal(everything(run, whole), everything(resumed, part))


def test_r2d2_trainer_writes_a_checkpoint_whole(tmp_path, monkeypatch):
    """Cut off in the middle of writing: no folder that looks like a checkpoint."""
    from modeling_r2d2.training import trainer as module

    def broken(folder, state):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_state", broken)
    with pytest.raises(OSError, match="no space"):
        trainer(tmp_path, "r2d2").train()
    assert not list(tmp_path.glob("checkpoint-*"))
    monkeypatch.undo()
    trainer(tmp_path, "r2d2").train()
    assert sorted(p.name for p in tmp_path.glob("*check*")) == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    assert not list(tmp_path.glob(".*"))
    assert all(is_complete(folder) for folder in tmp_path.glob("checkpoint-*"))


def test_the_best_checkpoint_is_named_and_kept(tmp_path):
    run = trainer(
        tmp_path,
        "r2d2",
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        save_total_limit=1,
        prediction_loss_only=True,
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert (best / "model.safetensors").is_file()
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)


def test_stock_trainer_refuses_a_checkpoint_that_was_cut_off(tmp_path):
    trainer(tmp_path).train()
    torn = tmp_path / "checkpoint-8"
    size = (torn / STATE_FILE).stat().st_size
    with (torn / STATE_FILE).open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(ValueError, match=r"checkpoint-8 is not complete.*resume from .*checkpoint-6"):
        trainer(tmp_path, max_steps=10).train(resume_from_checkpoint=str(torn))
    shutil.rmtree(tmp_path / "checkpoint-6")
    shutil.rmtree(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match="there is no complete one"):
        trainer(tmp_path, max_steps=10).train(resume_from_checkpoint=str(torn))


@pytest.mark.parametrize("kind", KINDS)
def test_resume_without_distillation_state(kind, tmp_path):
    trainer(tmp_path, kind).train()
    folder = tmp_path / "checkpoint-6"
    (folder / STATE_FILE).unlink()
    marked = json.loads((folder / "complete.json").read_text())
    del marked["files"][STATE_FILE]
    (folder / "complete.json").write_text(json.dumps(marked))
    with pytest.raises(ValueError, match="has no distillation state.*missing_state='start'"):
        trainer(tmp_path, kind).train(resume_from_checkpoint=str(folder))
    distillation = callback(missing_state="start")
    run = trainer(tmp_path, kind, callbacks=[distillation])
    run.train(resume_from_checkpoint=str(folder))
    assert int(distillation.state.queue.written) > 0


def test_resume_with_another_queue(tmp_path):
    trainer(tmp_path).train()
    other = TwoWayDistillationCallback(
        TargetGuidedSettings(queue_size=20), FeatureGuidedSettings(block=8), momentum=0.9
    )
    with pytest.raises(ValueError, match=r"queue.ids is \(14,\) there and \(24,\) here"):
        trainer(tmp_path, callbacks=[other]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_checkpoint_from_elsewhere(tmp_path):
    """The stock Trainer does not tell its callbacks where it resumes from: `resume_from` does; R2D2Trainer tells."""
    for kind in KINDS:
        trainer(tmp_path / kind, kind).train()
    source = tmp_path / "stock" / "checkpoint-6"
    with pytest.raises(ValueError, match="checkpoint-6"):
        trainer(tmp_path / "second").train(resume_from_checkpoint=str(source))
    for kind, arguments in (("stock", {"resume_from": source}), ("r2d2", {})):
        distillation = callback(**arguments)
        run = trainer(tmp_path / f"third-{kind}", kind, callbacks=[distillation])
        run.train(resume_from_checkpoint=str(tmp_path / kind / "checkpoint-6"))
        assert (
            int(distillation.state.queue.written) == STEPS * BATCH - (kind == "stock") * 2
        )  # its fifth batch is short


@pytest.mark.parametrize(
    ("settings", "fields", "match"),
    [
        (TargetGuidedSettings, {"queue_size": -1}, "queue_size is -1; it must be a whole number at least 0"),
        (TargetGuidedSettings, {"alpha": 1.5}, r"alpha is 1\.5; .* at least 0 and at most 1"),
        (TargetGuidedSettings, {"reliability": "both"}, "'loss' or 'logits'"),
        (FeatureGuidedSettings, {"teacher_temperature": 0}, "teacher_temperature is 0; it must be .* above 0"),
        (FeatureGuidedSettings, {"image_drop": 1.0}, r"image_drop is 1\.0; .* at least 0 and below 1"),
    ],
)
def test_settings_are_checked(settings, fields, match):
    with pytest.raises(ValueError, match=match):
        settings(**fields)

"""BriVL's dual queue in the stock Trainer and in R2D2Trainer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from modeling_r2d2 import R2D2ForPreTraining, R2D2TextModel, TwoWayDistillationCallback, WukongModel
from modeling_r2d2.distillation import DualQueueSettings, DualQueueState, TargetGuidedSettings
from modeling_r2d2.distillation.callbacks import distillation_of
from tests.distillation.runs import BATCH, STEPS
from tests.distillation.test_callbacks import assert_equal
from tests.systems.runs import QUEUE, callback, everything, towers, trainer, unmasked
from tests.systems.test_dual_queue_loss import reference as loss_by_hand
from tests.tiny import TEXT, tiny_config
from tests.wukong.tiny import tiny_wukong

ROOT = Path(__file__).parents[2]
KINDS = ("stock", "r2d2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["prd2", "wukong"])
def test_everything_is_logged(kind, model, tmp_path):
    dual_queue = callback()
    run = trainer(tmp_path, kind, callbacks=[dual_queue], model=towers(model), data=unmasked(16))
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    assert logs[0]["loss"] == 0  # the queue is empty
    assert all(entry["loss"] > 0 for entry in logs[1:])
    assert [entry["queue_fill"] for entry in logs] == pytest.approx([0.4, 0.8] + [1.0] * (STEPS - 2))
    assert all(-1 <= entry["teacher_agreement"] <= 1 for entry in logs)
    assert not {"loss_gcpr", "loss_tgd", "queue_reliability"} & logs[-1].keys()
    assert distillation_of(run.model) is None
    assert not run.model._forward_pre_hooks
    assert not run.model._forward_hooks
    assert run.model.temperature.item() == pytest.approx(0.07)


def reference(steps: int, accumulation: int, same_id_negatives: bool) -> tuple[dict, list[float]]:
    """The run written out: a list of the last keys for each modality, SGD, batches in the order of the data. The loss
    is written with log_softmax over [positive, negatives], and checked against the one in numpy."""
    student, teacher = towers(dropout=0.0).train(), towers(dropout=0.0).eval()
    names = [n for n, _ in student.named_parameters() if n != "temperature"]
    rows, place = ids_that_come_back(16 * accumulation).rows, 0
    queue: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    losses = []
    optimizer = torch.optim.SGD([student.get_parameter(n) for n in names], lr=0.05)
    for _ in range(steps):
        step_loss = 0.0
        for _ in range(accumulation):
            batch = {name: value[place : place + BATCH] for name, value in rows.items()}
            place += BATCH
            given = {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}
            out = student(**given, return_loss=False)
            with torch.no_grad():
                keys = teacher(**given, return_loss=False)
            loss = 0.0
            for row, image_id in enumerate(batch["image_ids"].tolist()):
                others = [entry for entry in queue if same_id_negatives or entry[2] != image_id]
                for query, key, column in (
                    (out.image_embeds[row], keys.text_embeds[row], 1),
                    (out.text_embeds[row], keys.image_embeds[row], 0),
                ):
                    logits = torch.stack([query @ key, *(query @ entry[column] for entry in others)]) / 0.07
                    loss = loss - logits.log_softmax(dim=0)[0] / BATCH
            (loss / accumulation).backward()
            step_loss += loss.item() / accumulation
            if queue and same_id_negatives:
                arrays = [t.detach().double().numpy() for t in (out.image_embeds, out.text_embeds)]
                arrays += [t.double().numpy() for t in (keys.image_embeds, keys.text_embeds)]
                arrays += [torch.stack([entry[c] for entry in queue]).double().numpy() for c in (0, 1)]
                assert loss.item() == pytest.approx(loss_by_hand(*arrays), rel=1e-4)
            new = zip(keys.image_embeds, keys.text_embeds, batch["image_ids"].tolist(), strict=True)
            queue = [*queue, *new][-QUEUE:]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name in names:
                average = teacher.get_parameter(name)
                average.copy_(0.9 * average + 0.1 * student.get_parameter(name))
        losses.append(step_loss)
    state = {f"student.{n}": p for n, p in student.state_dict().items()}
    return state | {f"teacher.model.{n}": p for n, p in teacher.state_dict().items()}, losses


def ids_that_come_back(size: int):
    data = unmasked(size)
    data.rows["image_ids"] = torch.arange(size) % 6
    return data


@pytest.mark.parametrize("same_id_negatives", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_does_what_the_loop_written_out_does(kind, accumulation, same_id_negatives, tmp_path):
    dual_queue = callback(same_id_negatives=same_id_negatives)
    run = trainer(
        tmp_path,
        kind,
        accumulation,
        [dual_queue],
        model=towers(dropout=0.0),
        data=ids_that_come_back(16 * accumulation),
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
    run.train()
    expected, losses = reference(4, accumulation, same_id_negatives)
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-4, abs=1e-4)
    actual = everything(run, dual_queue)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


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


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    step = int(torch.randint(4, STEPS, ()))  # another one every time
    command = [sys.executable, "-m", "tests.systems.runs", str(tmp_path / "killed"), "r2d2", "1", str(step)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    whole, part = callback(), callback()
    run = trainer(tmp_path / "whole", "r2d2", callbacks=[whole])
    run.train()
    resumed = trainer(tmp_path / "killed", "r2d2", callbacks=[part])
    resumed.train(resume_from_checkpoint=True)
    assert_equal(everything(run, whole), everything(resumed, part))


def test_resume_with_another_queue_or_without_state(tmp_path):
    trainer(tmp_path, "r2d2").train()
    folder = str(tmp_path / "checkpoint-6")
    with pytest.raises(ValueError, match=r"distillation\.settings\.queue_size 10, this run has 20"):
        trainer(tmp_path, "r2d2", callbacks=[callback(queue_size=20)]).train(resume_from_checkpoint=folder)
    (tmp_path / "checkpoint-6" / "distillation.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not complete: .*distillation\.safetensors is missing"):
        trainer(tmp_path, "r2d2").train(resume_from_checkpoint=folder)


def test_evaluation_leaves_the_queue_alone(tmp_path):
    seen = {"step": [], "evaluation": []}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen["step"].append({n: v.clone() for n, v in dual_queue.state.state_dict().items()})

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen["evaluation"].append({n: v.clone() for n, v in dual_queue.state.state_dict().items()})

    dual_queue = callback()
    run = trainer(
        tmp_path,
        "r2d2",
        callbacks=[dual_queue, Watch()],
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        prediction_loss_only=True,
    )
    run.train()
    for before, after in zip(seen["step"], seen["evaluation"], strict=True):
        assert_equal(before, after)
    evaluated = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert all(entry["eval_loss_gcpr"] > 0 for entry in evaluated)  # the model's own loss, over its batch


def test_skipped_steps_leave_the_teacher_alone(tmp_path, monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer

    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append({n: v.clone() for n, v in dual_queue.state.state_dict().items()})

    dual_queue = callback()
    run = trainer(tmp_path, callbacks=[dual_queue, Watch()], max_steps=5)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: run.state.global_step == 4))
    run.train()
    name = "teacher.model.text_projection.weight"
    assert [torch.equal(seen[i][name], seen[i + 1][name]) for i in range(4)] == [False, False, True, False]
    assert [int(state["queue.written"]) for state in seen] == [4, 8, 12, 16, 18]  # 18 pairs: the last batch holds two


def test_short_batches_and_pairs_without_ids(tmp_path):
    data = unmasked()
    del data.rows["image_ids"]
    dual_queue = callback()
    trainer(tmp_path, data=data, callbacks=[dual_queue], max_steps=5, label_names=[]).train()
    assert int(dual_queue.state.queue.written) == 18
    ids = dual_queue.state.queue.candidates()[2]
    assert (ids < 0).all()
    assert len(ids.unique()) == QUEUE


def test_bfloat16(tmp_path):
    dual_queue = callback()
    run = trainer(tmp_path, callbacks=[dual_queue], max_steps=3, bf16=True)
    run.train()
    assert dual_queue.state.teacher.autocast == torch.bfloat16
    assert dual_queue.state.queue.images.dtype == torch.float32
    assert run.state.log_history[1]["loss"] > 0


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norms_of_the_teacher(frozen):
    """Keys are normalised by their batch where the student is, by the running statistics where it is not, and the
    statistics are noted by neither."""
    torch.manual_seed(0)
    student = R2D2ForPreTraining(tiny_config("resnet", ranker=False)).train()
    student.vision_model.train(not frozen)
    state = DualQueueState(student, DualQueueSettings(queue_size=8), batch=4)
    before = {name: value.clone() for name, value in state.teacher.state_dict().items()}
    batch = {name: value[:4] for name, value in unmasked().rows.items()}
    state.keys(batch)
    assert_equal(before, dict(state.teacher.state_dict()))
    assert not any(module.training for module in state.teacher.modules())
    assert all(m.track_running_stats for m in state.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d))
    state.commit(student, 1.0)
    expected = torch.nn.functional.normalize(student.get_image_features(batch["pixel_values"]).pooler_output, dim=-1)
    torch.testing.assert_close(state.queue.candidates()[0], expected.detach())
    student.vision_model.train(frozen)
    other = torch.nn.functional.normalize(student.get_image_features(batch["pixel_values"]).pooler_output, dim=-1)
    assert not torch.allclose(expected, other, atol=1e-3)


def test_it_learns(tmp_path):
    """Sixteen pairs are told apart within a hundred steps, though no batch compares its own."""
    data = unmasked(16)
    model = towers(dropout=0.0)
    run = trainer(
        tmp_path,
        callbacks=[callback(queue_size=12)],
        model=model,
        data=data,
        max_steps=100,
        learning_rate=3e-3,
        save_strategy="no",
        logging_steps=100,
    )
    given = {name: data.rows[name] for name in ("input_ids", "pixel_values", "attention_mask")}

    @torch.no_grad()
    def share_right() -> float:
        logits = model.eval()(**given, return_loss=False).logits_per_image
        return (logits.argmax(dim=1) == torch.arange(16)).float().mean().item()

    assert share_right() < 0.5
    run.train()
    assert share_right() > 0.9


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (lambda: R2D2ForPreTraining(tiny_config()), ValueError, "has a ranker, which would not train"),
        (lambda: tiny_wukong("filip"), ValueError, "compares token by token"),
        (lambda: R2D2TextModel(tiny_config().text_config), TypeError, "not R2D2TextModel"),
    ],
)
def test_models_that_it_cannot_train(model, error, match, tmp_path):
    with pytest.raises(error, match=match):
        trainer(tmp_path, model=model())


def test_other_teachers_in_the_same_run_are_refused(tmp_path):
    two_way = TwoWayDistillationCallback(TargetGuidedSettings(queue_size=4))
    for callbacks in ([callback(), two_way], [two_way, callback()], [callback(), callback()]):
        with pytest.raises(ValueError, match="is the whole loss of a run"):
            trainer(tmp_path, callbacks=callbacks).train()


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="queue_size is 0; .* at least 1"):
        DualQueueSettings(queue_size=0)
    with pytest.raises(ValueError, match="temperature is .*above 0"):
        DualQueueSettings(temperature=0)
    with pytest.raises(ValueError, match="either a DualQueueSettings or its fields"):
        callback(settings=DualQueueSettings())
    with pytest.raises(ValueError, match=r"queue_size is 3, less than the batch of all workers \(4\)"):
        DualQueueState(towers(), DualQueueSettings(queue_size=3), batch=4)
    with pytest.raises(ValueError, match="grad_cache_chunk compares large batches"):
        trainer(tmp_path, "r2d2", grad_cache_chunk=2).train()


def test_unequal_numbers_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.data_collator = lambda rows: {**torch.utils.data.default_collate(rows), "input_ids": torch.ones(3, 9).long()}
    with pytest.raises(ValueError, match="4 images, 3 texts"):
        run.train()


def test_the_trained_model_loads(tmp_path):
    run = trainer(tmp_path, "r2d2", model=towers("wukong"), max_steps=2)
    run.train()
    run.save_model()
    loaded = WukongModel.from_pretrained(tmp_path)
    assert loaded.temperature.item() == pytest.approx(0.07)
    assert TEXT["vocab_size"] == loaded.config.text_config.vocab_size

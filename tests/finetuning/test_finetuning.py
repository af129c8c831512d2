"""Whole runs on tiny data: every task, exact resume, frozen towers at rest, early stopping, what is saved."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    TrainerCallback,
    pipeline,
)

from modeling_r2d2 import R2D2ForImageTextMatching, R2D2ForPreTraining, R2D2Model
from modeling_r2d2.finetuning import LoRASettings, add_adapters, build_trainer, finetune, load_adapter, load_for
from modeling_r2d2.finetuning.run import MODEL_CLASSES
from tests.tiny import tiny_config

from .conftest import NAMES, Colors, save_base, settings


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def different(first: dict, second: dict) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def run(base, run_settings, pairs=None, validation=None, **options):
    return finetune(base, pairs or Colors(), run_settings, validation, **options)


@pytest.mark.parametrize("task", list(MODEL_CLASSES))
def test_every_task_by_its_default_preset(base, tmp_path, task):
    lines = []
    trainer, report = run(base, settings(tmp_path / "run", task), validation=Colors(8), print_line=lines.append)
    before = weights(MODEL_CLASSES[task].from_pretrained(base, num_labels=8))
    after = weights(trainer.model)
    changed = {name.split(".")[0] for name in different(after, before)}
    assert changed == set(report.trainable)
    assert ("vision_model" in changed) == (task == "classification")
    assert f"{task}, whole weights" in lines[0]
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2
    saved = json.loads((tmp_path / "run" / "finetuning.json").read_text(encoding="utf-8"))
    assert saved["report"]["data"]["pairs"] == 24
    assert saved["settings"]["task"] == task
    again = MODEL_CLASSES[task].from_pretrained(tmp_path / "run")
    assert different(weights(again), after) == []


def test_the_published_schedule_drives_the_trainer(base, tmp_path):
    """Warm-up over the first epoch and a step; then constant, and lower in the last epoch."""
    trainer, _ = run(base, settings(tmp_path / "run", num_train_epochs=4, warmup_steps=4))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    # logged after a step: the rate of the next one is in the scheduler, the last one's in the log
    warm = [1e-6 + 9e-6 * step / 4 for step in range(4)]
    expected = [*warm, warm[3], warm[3], *[0.5e-5] * 3, *[1.4644661e-6] * 3]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_groups_of_a_trainer_follow_the_settings(base, tmp_path):
    model, processor = load_for("matching", base)
    trainer = build_trainer(
        model, processor, Colors(), settings(tmp_path, "matching", rates={"text_model": 0.5}), Colors()
    )
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    found = {(g["initial_lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups}
    assert found == {(3e-6, 0.01), (3e-6, 0.0), (1.5e-6, 0.01), (1.5e-6, 0.0)}
    assert [g["lr"] / g["initial_lr"] for g in trainer.optimizer.param_groups] == pytest.approx([0.05] * 4)


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2, dora=True)])
def test_an_interrupted_run_equals_an_uninterrupted_one(base, tmp_path, lora):
    """With an unfrozen temperature beside the adapters, early stopping's state, dropout and augmentation."""
    if lora is not None:
        pytest.importorskip("peft")
    options = {"num_train_epochs": 3, "lora": lora, "patience": 9, "learning_rate": 1e-3, "freeze": ()}
    pairs, validation = Colors(16), Colors(8)
    whole, _ = run(base, settings(tmp_path / "whole", **options), pairs, validation)
    half = settings(tmp_path / "half", **options)
    model, processor = load_for("retrieval", base)
    first = build_trainer(model, processor, pairs, half, validation, callbacks=[StopAfter(4)])
    first.train()
    assert first.state.global_step == 4
    half.resume = True
    torch.manual_seed(12345)  # whatever the new process drew before
    resumed, _ = run(base, half, pairs, validation)
    assert resumed.state.global_step == 6
    assert different(weights(resumed.model), weights(whole.model)) == []
    evaluations = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (whole, resumed)
    ]
    assert len(evaluations[0]) == 3
    assert evaluations[0] == evaluations[1]


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_frozen_tower_does_not_move_at_all(processor, tmp_path):
    """Not even the running statistics of its batch norms; an unfrozen one does."""
    base = save_base(tmp_path / "base", processor, "resnet")
    before = weights(R2D2Model.from_pretrained(base).vision_model)
    frozen, _ = run(base, settings(tmp_path / "frozen"))
    assert different(weights(frozen.model.vision_model), before) == []
    assert any("running_mean" in name for name in before)
    trained, _ = run(base, settings(tmp_path / "trained", freeze=()))
    assert any("running_mean" in name for name in different(weights(trained.model.vision_model), before))


def test_a_frozen_part_drops_nothing_out(base, tmp_path):
    model, processor = load_for("retrieval", base)
    trainer = build_trainer(model, processor, Colors(), settings(tmp_path, freeze=("text_model",)))
    modes = {}
    model.text_model.register_forward_hook(lambda module, *_: modes.update(text=module.training))
    model.text_image_encoder.register_forward_hook(lambda module, *_: modes.update(cross=module.training))
    trainer.train()
    assert modes == {"text": False, "cross": True}


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_save_load_and_merge(base, tmp_path, dora):
    pytest.importorskip("peft")
    trainer, report = run(
        base,
        settings(
            tmp_path / "run", preset="small", lora=LoRASettings(rank=2, dora=dora), learning_rate=3e-3, patience=0
        ),
    )
    assert report.method.startswith("DoRA" if dora else "LoRA")
    merged = AutoModel.from_pretrained(tmp_path / "run").eval()
    assert type(merged) is R2D2Model
    plain = AutoModel.from_pretrained(base).eval()
    batch = inputs(AutoProcessor.from_pretrained(tmp_path / "run"))
    with torch.no_grad():
        before, after = plain(**batch).logits_per_image, merged(**batch).logits_per_image
        adapted = load_adapter(AutoModel.from_pretrained(base), tmp_path / "run" / "adapter").eval()
        torch.testing.assert_close(adapted(**batch).logits_per_image, after, atol=1e-4, rtol=1e-4)
        rank = {"input_ids": batch["input_ids"][:4], "pixel_values": batch["pixel_values"]}
        torch.testing.assert_close(
            adapted.match(**rank).match_probability, merged.match(**rank).match_probability, atol=1e-5, rtol=1e-5
        )
    assert (before - after).abs().max() > 0.1
    assert merged.temperature != plain.temperature  # it trains beside the adapters
    assert adapted.temperature == merged.temperature
    stored = sum(p.stat().st_size for p in (tmp_path / "run" / "adapter").glob("*.safetensors"))
    assert stored < (tmp_path / "run" / "model.safetensors").stat().st_size / 2
    assert not (tmp_path / "run" / "adapter" / "README.md").exists()  # PEFT's form, which nobody has filled in


def inputs(processor) -> dict:
    pairs = Colors()
    return processor(
        images=[pairs[i]["image"] for i in range(4)], text=[pairs.texts(i)[0] for i in range(4)], return_tensors="pt"
    )


def test_adapters_begin_as_no_change_and_spare_what_is_frozen(base, processor, tmp_path):
    pytest.importorskip("peft")
    model, _ = load_for("retrieval", base)
    batch = {**inputs(processor), "image_ids": torch.arange(4)}
    with torch.no_grad():
        before = model.eval()(**batch).loss_gcpr
    trainer = build_trainer(
        model, processor, Colors(), settings(tmp_path, preset="small", freeze=("vision_model", "temperature"))
    )
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(**batch).loss_gcpr, before)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name and "vision_model" not in name for name in trained)


def test_targets_by_name(base, processor, tmp_path):
    pytest.importorskip("peft")
    chosen = LoRASettings(rank=2, targets=("text_model.encoder.layer.*.attention.self.*",), train_also=())
    model, _ = load_for("retrieval", base)
    trainer = build_trainer(model, processor, Colors(), settings(tmp_path, preset="small", lora=chosen))
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 3 * 2  # layers × query, key, value × two matrices
    for bad, message in (
        (LoRASettings(targets=("poetry",)), "LoRA target 'poetry' matches no linear layer"),
        (LoRASettings(train_also=("poetry",)), "train_also 'poetry' matches no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            add_adapters(load_for("retrieval", base)[0], bad)


def test_early_stopping_keeps_the_best_weights(base, tmp_path):
    """A rate that destroys the model: the first evaluation is the best one, and its weights are kept."""
    trainer, _ = run(
        base,
        settings(
            tmp_path / "run",
            num_train_epochs=9,
            learning_rate=0.3,
            patience=2,
            lr_scheduler_type="constant",
            warmup_steps=0,
        ),
        validation=Colors(8),
    )
    recalls = [entry["eval_mean_recall"] for entry in trainer.state.log_history if "eval_mean_recall" in entry]
    best = max(range(len(recalls)), key=recalls.__getitem__)
    assert len(recalls) == best + 3 < 9
    assert trainer.evaluate()["eval_mean_recall"] == pytest.approx(recalls[best])


def test_matching_is_judged_by_its_probability(base, tmp_path):
    """Against the labelled pairs one by one; true pairs without labels get one drawn negative each."""
    trainer, _ = run(
        base, settings(tmp_path / "run", "matching", num_train_epochs=1, learning_rate=1e-3), validation=Colors(8)
    )
    model, processor = trainer.model.eval(), trainer.processing_class
    labelled = trainer.eval_dataset.pairs
    assert len(labelled) == 16
    scores = []
    for index in range(16):
        pair = labelled[index]
        encoded = processor(images=[pair["image"]], text=[pair["text"]], return_tensors="pt")
        with torch.no_grad():
            matched = model.match(encoded["input_ids"], encoded["pixel_values"], encoded["attention_mask"])
        scores.append(float(matched.match_probability))
    wins = [float(p > n) + 0.5 * (p == n) for p in scores[:8] for n in scores[8:]]
    assert trainer.evaluate()["eval_roc_auc"] == pytest.approx(100 * sum(wins) / 64)
    assert type(model) is R2D2ForImageTextMatching


def test_captions_are_learnt(processor, tmp_path):
    base = save_base(tmp_path / "base", processor, "resnet", dropout=0.0)
    pairs = Colors(8)
    options = {
        "num_train_epochs": 60,
        "learning_rate": 5e-3,
        "augment": False,
        "freeze": (),
        "logging_steps": 60,
        "warmup_steps": 5,
    }
    run(
        base,
        settings(tmp_path / "run", "caption", arguments={"save_strategy": "no", "use_cpu": True}, **options),
        pairs,
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    read = AutoProcessor.from_pretrained(tmp_path / "run")
    images = read(images=[pairs[i]["image"] for i in range(8)], return_tensors="pt")
    captions = read.post_process_image_text_to_text(model.generate(**images))
    assert all(caption.endswith("色的图片") and caption[0] in NAMES for caption in captions)
    right = sum(caption == pairs.texts(i)[0] for i, caption in enumerate(captions))
    assert right >= 6  # by chance 1


def test_a_classifier_begins_as_zero_shot_and_classifies_in_the_stock_pipeline(base, processor, tmp_path):
    pytest.importorskip("peft")
    from modeling_r2d2.finetuning.data import class_names

    names = class_names(Colors())
    model, _ = load_for("classification", base, names, prompts=("{}",))
    whole = R2D2Model.from_pretrained(base).eval()
    images = [Colors()[i]["image"] for i in range(5)]
    batch = processor(images=images, text=names, return_tensors="pt")
    with torch.no_grad():
        zero_shot = whole(**batch).logits_per_image
        torch.testing.assert_close(model.eval()(batch["pixel_values"]).logits, zero_shot, atol=1e-4, rtol=1e-4)
    begin = model.classifier.weight.clone()
    small = settings(tmp_path / "run", "classification", "small", lora=LoRASettings(rank=2), num_train_epochs=1)
    trainer, report = run(base, small)
    assert report.trainable.keys() == {"vision_model", "vision_projection", "temperature", "classifier"}
    assert not torch.equal(trainer.model.classifier.weight, begin)
    classify = pipeline("image-classification", model=str(tmp_path / "run"))
    result = classify(images[0], top_k=8)
    assert {entry["label"] for entry in result} == set(names)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert again.config.id2label == dict(enumerate(names))


def test_prd2_is_fine_tuned_for_retrieval_alone(processor, tmp_path):
    R2D2ForPreTraining(tiny_config(ranker=False, max_text_length=16)).save_pretrained(tmp_path / "prd2")
    processor.save_pretrained(tmp_path / "prd2")
    trainer, _ = run(tmp_path / "prd2", settings(tmp_path / "run"))
    assert "loss_fgr" not in trainer.state.log_history[0]
    for task in ("matching", "caption"):
        with pytest.raises(ValueError, match="prd2 is pre-ranking only"):
            load_for(task, tmp_path / "prd2")


def test_what_is_refused(base, processor, tmp_path):
    captioner, _ = load_for("caption", base)
    captioner.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a \w+, such as image_joint"):
        load_for("matching", tmp_path / "captioner")
    with pytest.raises(ValueError, match="24 pairs are fewer than a batch of 32"):
        run(base, settings(tmp_path / "run", per_device_train_batch_size=32))
    with pytest.raises(ValueError, match="nothing to resume"):
        run(base, settings(tmp_path / "run", resume=True))
    run(base, settings(tmp_path / "run", num_train_epochs=1))
    with pytest.raises(FileExistsError, match="already holds"):
        run(base, settings(tmp_path / "run"))
    labelled = Colors()
    labelled.labelled = True
    with pytest.raises(ValueError, match="labelled pairs, and caption learns from true ones"):
        run(base, settings(tmp_path / "other", "caption"), labelled)
    with pytest.raises(ValueError, match="a classifier needs its classes"):
        load_for("classification", base)

"""Training in R2D2Trainer and in the stock Trainer: logs, metrics, exact resume, what is refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments, set_seed

from modeling_r2d2 import (
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForPreTraining,
    R2D2Processor,
    R2D2Trainer,
    R2D2TrainingArguments,
)
from modeling_r2d2.evaluation import retrieval_metrics
from modeling_r2d2.processing.batch_augmentation import BatchAugmentation
from modeling_r2d2.processing.collation import PretrainingDataset, R2D2PretrainingCollator
from modeling_r2d2.processing.masking import TextMasking
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.training.pretraining import PretrainingSettings, build_trainer, pretrain
from tests.tiny import tiny_batch, tiny_config

NAMES = "红绿蓝黄黑白紫橙"


class Colors:
    """Plain pictures of eight colours, three shades each, and their names."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict:
        color = index % 8
        rng = np.random.default_rng(color)
        base = rng.integers(30, 220, 3) + np.random.default_rng(index).integers(-10, 10, 3)
        return {
            "image": Image.new("RGB", (40, 40), tuple(int(v) for v in base)),
            "text": f"{NAMES[color]}色的图片",
            "image_id": NAMES[color],
        }


@pytest.fixture(scope="module")
def processor() -> R2D2Processor:
    pairs = Colors()
    tokenizer = build_character_tokenizer([pairs[i]["text"] for i in range(8)], max_length=16)
    return R2D2Processor.build(tokenizer, image_size=32, max_length=16)


def model(tower: str = "resnet", dropout: float = 0.1) -> R2D2ForPreTraining:
    set_seed(0)
    return R2D2ForPreTraining(tiny_config(tower, dropout=dropout))


def settings(folder, **kwargs) -> PretrainingSettings:
    arguments = {"disable_tqdm": True, "use_cpu": True}
    return PretrainingSettings(
        **{
            "output": folder,
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "augmentation": BatchAugmentation(),
            "distil": False,
            "eval_steps": 0,
            "save_steps": 0,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "arguments": arguments,
            **kwargs,
        }
    )


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def test_every_part_of_the_loss_is_logged(processor, tmp_path):
    options = settings(tmp_path, eval_steps=3, mask_ratio=0.15)
    trainer = build_trainer(model(), processor, Colors(), options, eval_pairs=Colors())
    trainer.train()
    first = trainer.state.log_history[0]
    parts = first["loss_gcpr"] + first["loss_fgr"] + first["loss_mlm"]
    assert first["loss"] == pytest.approx(parts, rel=1e-3)
    for name in ("ranking_accuracy", "temperature", "images_per_second", "data_wait"):
        assert name in first
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert {"eval_loss_gcpr", "eval_loss_fgr", "eval_text_to_image_r1"} <= evaluation.keys()
    assert "eval_loss_mlm" not in evaluation  # no masking in evaluation: ranking is judged on unmasked texts
    assert 0 <= trainer.mean_data_wait <= 1
    assert trainer.mean_images_per_second > 0


def test_it_learns_and_the_best_checkpoint_is_chosen_by_recall(processor, tmp_path):
    arguments = {
        "disable_tqdm": True,
        "use_cpu": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "text_to_image_r1",
    }
    trainer = build_trainer(
        model(dropout=0.0),
        processor,
        Colors(),
        settings(
            tmp_path,
            max_steps=60,
            learning_rate=3e-3,
            augmentation=None,
            augment=False,
            eval_steps=20,
            save_steps=20,
            arguments=arguments,
        ),
        eval_pairs=Colors(),
    )
    trainer.train()
    assert trainer.state.best_metric is not None
    assert trainer.evaluate()["eval_text_to_image_r5"] > 90
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2


def test_the_whole_gallery_is_evaluated_though_training_drops_the_last_batch(processor, tmp_path):
    trainer = build_trainer(
        model(), processor, Colors(), settings(tmp_path, per_device_train_batch_size=10), eval_pairs=Colors()
    )
    assert trainer.args.dataloader_drop_last
    assert sum(len(batch["image_ids"]) for batch in trainer.get_eval_dataloader()) == 24
    assert trainer.args.dataloader_drop_last


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_interrupted_run_equals_an_uninterrupted_one(processor, tmp_path, accumulation):
    whole = settings(
        tmp_path / "whole", save_steps=2, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4
    )
    expected = weights(pretrain(model(), processor, Colors(), whole).model)
    half = settings(
        tmp_path / "half", save_steps=2, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4
    )
    trainer = build_trainer(model(), processor, Colors(), half)
    trainer.train()
    for checkpoint in (tmp_path / "half").glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    half.resume = True
    torch.manual_seed(12345)  # whatever the new process drew before
    resumed = pretrain(model(), processor, Colors(), half)
    assert resumed.state.global_step == 6
    assert_equal(weights(resumed.model), expected)


def test_workers_change_nothing(processor, tmp_path):
    results = []
    for workers in (0, 2):
        run = settings(tmp_path / str(workers), max_steps=3, dataloader_num_workers=workers)
        results.append(weights(pretrain(model(), processor, Colors(), run).model))
    assert_equal(*results)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_stock_trainer(processor, tmp_path, accumulation):
    """The stock Trainer with its own defaults: the loss is a mean per micro-batch, and recall can be measured."""
    data = PretrainingDataset(
        Colors(), processor, BatchAugmentation(), TextMasking(processor.tokenizer), shuffle=True, passes=4
    )
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        label_names=["image_ids"],
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        learning_rate=0.0,
    )
    trainer = Trainer(
        model(),
        arguments,
        train_dataset=data,
        eval_dataset=PretrainingDataset(Colors(), processor),
        data_collator=R2D2PretrainingCollator(processor),
        compute_metrics=retrieval_metrics,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(4 < loss < 12 for loss in losses)  # not multiplied by the accumulation
    assert "eval_text_to_image_r1" in trainer.evaluate()


def test_weight_decay_spares_temperature_norms_and_biases(processor, tmp_path):
    trainer = build_trainer(model(), processor, Colors(), settings(tmp_path))
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "vision_projection.weight" in decayed
    assert not [name for name in decayed if "norm" in name.lower() or "bias" in name or name == "temperature"]


def test_a_tokenizer_of_another_model_is_refused(processor, tmp_path):
    small = R2D2ForPreTraining(tiny_config("resnet"))
    small.resize_token_embeddings(5)
    with pytest.raises(ValueError, match=r"tokens but the model's vocabulary 5"):
        R2D2Trainer(small, R2D2TrainingArguments(tmp_path, use_cpu=True), processing_class=processor)


def test_a_folder_that_holds_a_model_is_refused(processor, tmp_path):
    run = settings(tmp_path / "run", max_steps=1)
    pretrain(model(), processor, Colors(), run)
    with pytest.raises(FileExistsError, match="already holds config.json"):
        pretrain(model(), processor, Colors(), run)
    run.resume = True
    with pytest.raises(ValueError, match="nothing to resume"):
        pretrain(model(), processor, Colors(), run)


def test_prd2_trains_by_pre_ranking(processor, tmp_path):
    prd2 = R2D2ForPreTraining(tiny_config("clip", ranker=False))
    trainer = pretrain(prd2, processor, Colors(), settings(tmp_path / "prd2", max_steps=2))
    assert "loss_fgr" not in trainer.state.log_history[0]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", [R2D2ForImageTextMatching, R2D2ForConditionalGeneration, R2D2ForImageClassification])
def test_label_smoothing(kind, adapted, tmp_path):
    """Of the labels that a class learns: both encoders' of a ranker, the next token of a caption."""
    set_seed(0)
    network, epsilon = kind(tiny_config("vit", num_labels=2)).eval(), 0.3
    batch = {k: v for k, v in tiny_batch(4).items() if k in ("input_ids", "attention_mask", "pixel_values")}
    if kind is R2D2ForImageClassification:
        batch = {"pixel_values": batch["pixel_values"]}
    with torch.no_grad():
        output = network(**batch)
    labels = torch.tensor([0, 1, 1, 0])
    if kind is R2D2ForImageTextMatching:
        logits, wanted = torch.cat([output.text_match_logits, output.image_match_logits]), labels.repeat(2)
    elif kind is R2D2ForConditionalGeneration:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        logits, wanted = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    else:
        logits, wanted = output.logits, labels
    expected = torch.nn.functional.cross_entropy(logits, wanted, label_smoothing=epsilon)
    if adapted:
        peft = pytest.importorskip("peft")
        network = peft.get_peft_model(network, peft.LoraConfig(target_modules=["q_proj"])).eval()
    options = {"report_to": "none", "use_cpu": True, "label_smoothing_factor": epsilon}
    trainer = R2D2Trainer(network, TrainingArguments(str(tmp_path), **options))
    given = {**batch, "labels": labels}
    assert trainer.compute_loss(network, dict(given)).item() == pytest.approx(expected.item(), rel=1e-4)
    loss, _, _ = trainer.prediction_step(network, dict(given), prediction_loss_only=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_label_smoothing_without_labels_is_refused(tmp_path):
    arguments = R2D2TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="loss of R2D2ForPreTraining has none"):
        R2D2Trainer(model(), arguments)

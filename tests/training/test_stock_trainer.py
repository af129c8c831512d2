"""transformers' own Trainer, with nothing of ours beside the model: it reports `eval_loss`, predicts, and resumes."""

import inspect
import math

import pytest
import torch
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainingArguments

from modeling_r2d2 import (
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
    R2D2Model,
    WukongModel,
)
from tests.tiny import tiny_batch, tiny_config
from tests.wukong.tiny import tiny_wukong_config

TEXTS = ("input_ids", "attention_mask", "pixel_values")


class Rows(Dataset):
    """A batch as samples, plus columns that no model knows."""

    def __init__(self, columns: dict):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["pixel_values"])

    def __getitem__(self, index: int) -> dict:
        return {**{name: column[index] for name, column in self.columns.items()}, "caption": "猫", "url": "x"}


def contrastive_collator(samples: list[dict]) -> dict:
    """As the one of transformers' contrastive script."""
    return {**default_collate(samples), "return_loss": True}


def case(kind: str) -> tuple[torch.nn.Module, Rows, object]:
    batch = tiny_batch(10)
    texts = {name: batch[name] for name in TEXTS}
    labels = torch.arange(10) % 2
    config = tiny_config(num_labels=2)
    cases = {
        "pretraining": (R2D2ForPreTraining, texts, default_collate),
        "pretraining with ids": (R2D2ForPreTraining, {**texts, "image_ids": batch["image_ids"]}, default_collate),
        "pretraining with masks": (R2D2ForPreTraining, batch, default_collate),
        "retrieval": (R2D2ForImageTextRetrieval, texts, default_collate),
        "matching": (R2D2ForImageTextMatching, {**texts, "labels": labels}, default_collate),
        "captions": (R2D2ForConditionalGeneration, {**texts, "labels": texts["input_ids"]}, default_collate),
        "classification": (R2D2ForImageClassification, {TEXTS[2]: texts[TEXTS[2]], "labels": labels}, default_collate),
        "contrastive": (R2D2Model, texts, contrastive_collator),
        "wukong": (WukongModel, texts, contrastive_collator),
    }
    cls, columns, collate = cases[kind]
    torch.manual_seed(0)
    return cls(tiny_wukong_config("filip") if cls is WukongModel else config), Rows(columns), collate


KINDS = (
    "pretraining",
    "pretraining with ids",
    "pretraining with masks",
    "retrieval",
    "matching",
    "captions",
    "classification",
    "contrastive",
    "wukong",
)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_evaluates_and_predicts(kind, tmp_path):
    """With accumulation over a batch that does not fit the others, and predictions gathered over batches."""
    model, data, collate = case(kind)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=kind == "pretraining",
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data)
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert all(map(math.isfinite, evaluated))
    if kind.startswith("pretraining") or kind == "captions":
        return
    predicted = trainer.predict(data)
    assert math.isfinite(predicted.metrics["test_loss"])
    first = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    assert len(first) == len(data)


def test_masks_reach_the_model_by_name_and_place():
    """Trainer is shown a signature without labels by the class alone."""
    model, data, _ = case("pretraining with masks")
    batch, model = data.columns, model.eval()
    named = model(**batch)
    assert named.loss_mlm is not None
    order = ("input_ids", "pixel_values", "attention_mask", "image_ids", "masked_input_ids", "mlm_labels")
    assert list(inspect.signature(model.forward).parameters)[:6] == list(order)
    by_place = [batch[name] for name in order]
    for output in (model(*by_place), R2D2ForPreTraining.forward(model, *by_place)):
        assert torch.equal(output.loss, named.loss)
    trainer = Trainer(model, TrainingArguments(report_to="none", use_cpu=True))
    assert trainer.label_names == []
    assert trainer.can_return_loss
    assert "mlm_labels" in trainer._get_collator_with_removed_columns(default_collate).signature_columns

"""A folder of every kind that gets a card, and results of an evaluation."""

import json
from pathlib import Path

import pytest
import torch

from modeling_r2d2 import (
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
    R2D2TrainingArguments,
)
from modeling_r2d2.evaluation.results import EvaluationResult
from modeling_r2d2.inference.identity import identity_of_folder
from tests.helpers import tiny_model, tiny_processor
from tests.tiny import tiny_config

STATE = {
    "global_step": 40,
    "max_steps": 50,
    "train_batch_size": 8,
    "log_history": [
        {"step": 10, "loss": 9.0, "loss_gcpr": 1.0},
        {"step": 40, "loss": 3.21987, "loss_gcpr": 1.0, "loss_fgr": 2.0},
        {"step": 40, "train_runtime": 1.0},
    ],
}
FINETUNING = {
    "report": {
        "task": "retrieval",
        "method": "whole weights",
        "trainable": {"a": 1000, "b": 234},
        "data": {"pairs": 1200, "images": 600, "texts": 1200},
        "epochs": 3,
        "steps_per_epoch": 7,
    },
    "best_metric": 1.0,
    "settings": {
        "task": "retrieval",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-5,
        "seed": 4,
        "lr_scheduler_type": "cosine",
    },
}


def _wukong():
    from modeling_r2d2 import WukongConfig, WukongModel, WukongProcessor

    tokenizer = tiny_processor().tokenizer
    vision = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = {**vision, "vocab_size": 99, "max_position_embeddings": 16, "projection_dim": 16}
    text |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = WukongConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        text_config=text,
        projection_dim=16,
        max_text_length=16,
    )
    return WukongModel(config), WukongProcessor.build(tokenizer, 32, 16)


def _pretrained(folder: Path) -> None:
    """By-products of a run of `r2d2 pretrain`."""
    arguments = R2D2TrainingArguments(
        output_dir=str(folder), max_steps=50, per_device_train_batch_size=8, learning_rate=1e-3, seed=3
    )
    torch.save(arguments, folder / "training_args.bin")
    for step in (20, 40):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps({**STATE, "global_step": step}))
        torch.save({"step": step}, checkpoint / "optimizer.pt")


def make(folder: Path, kind: str) -> Path:
    """A folder as the programs of this package write it."""
    torch.manual_seed(0)
    config = tiny_config(max_text_length=16)
    processor = tiny_processor()
    if kind == "wukong":
        model, processor = _wukong()
    elif kind == "prd2":
        model = tiny_model(ranker=False)
    elif kind == "classification":
        config.id2label = {0: "猫", 1: "狗", 2: "船"}
        config.label2id = {name: place for place, name in config.id2label.items()}
        model = R2D2ForImageClassification(config)
    elif kind == "captioning":
        model = R2D2ForConditionalGeneration(config)
        model.set_special_tokens(processor.tokenizer)
    else:
        classes = {
            "pretrained": R2D2ForPreTraining,
            "finetuned": R2D2ForImageTextRetrieval,
            "matching": R2D2ForImageTextMatching,
        }
        model = classes[kind](config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind == "pretrained":
        _pretrained(folder)
    if kind in ("finetuned", "matching"):
        (folder / "finetuning.json").write_text(json.dumps(FINETUNING, ensure_ascii=False), encoding="utf-8")
    return folder


KINDS = ("pretrained", "prd2", "finetuned", "matching", "classification", "captioning", "wukong")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Kind -> folder; nothing may be written into them."""
    root = tmp_path_factory.mktemp("folders")
    return {kind: make(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def result_of():
    """A function: an evaluation of the folder's weights."""

    def make_result(folder, **changes):
        values = {
            "task": "retrieval",
            "data": "MUGE",
            "model": Path(folder).name,
            "metrics": {"pre_ranking.text_to_image_r1": 12.34567, "two_stage.mean_recall": 45.0},
            "intervals": {"pre_ranking.text_to_image_r1": (10.04, 14.06)},
            "counts": {"pictures": 1000, "texts": 2000},
            "settings": {"candidates": 128, "confidence": 0.95, "resamples": 1000},
            "data_hash": "d" * 32,
            "model_hash": identity_of_folder(folder),
        }
        return EvaluationResult(**{**values, **changes})

    return make_result


@pytest.fixture
def online(monkeypatch):
    """A hub of the tests, and this process allowed to talk to it and to nothing else."""
    from huggingface_hub import constants

    from tests.hub_cards.hub_server import TOKEN, Hub

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub

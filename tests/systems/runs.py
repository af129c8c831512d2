"""A tiny training run with the dual queue, as the tests and the process that gets killed start it.

python -m tests.systems.runs OUTPUT {stock,r2d2} ACCUMULATION [KILL_AT_STEP]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainingArguments, set_seed

from modeling_r2d2 import (
    DualQueueContrastiveCallback,
    R2D2ForPreTraining,
    R2D2Trainer,
    R2D2TrainingArguments,
    WukongModel,
)
from tests.distillation.runs import BATCH, STEPS, KillAt, Pairs
from tests.tiny import tiny_config
from tests.wukong.tiny import tiny_wukong_config

QUEUE = 10


def unmasked(size: int = 18) -> Pairs:
    """Encoded pairs without masked texts."""
    data = Pairs(size)
    del data.rows["masked_input_ids"], data.rows["mlm_labels"]
    return data


def collate(rows: list[dict]) -> dict:
    """As the package's collator: with `return_loss`, without which Wukong computes none."""
    return {**default_collate(rows), "return_loss": True}


def callback(**kwargs: Any) -> DualQueueContrastiveCallback:
    return DualQueueContrastiveCallback(**{"queue_size": QUEUE, "momentum": 0.9, **kwargs})


def towers(kind: str = "prd2", dropout: float = 0.1) -> torch.nn.Module:
    """PRD2's with dropout, or Wukong's with global similarity."""
    set_seed(0)
    if kind == "wukong":
        return WukongModel(tiny_wukong_config("clip"))
    return R2D2ForPreTraining(tiny_config(ranker=False, dropout=dropout))


def trainer(
    output: Path,
    kind: str = "stock",
    accumulation: int = 1,
    callbacks: list | None = None,
    model: torch.nn.Module | None = None,
    data: Dataset | None = None,
    **arguments: Any,
) -> Trainer:
    """Eight steps of batches of four, a checkpoint every three."""
    model = towers() if model is None else model
    stock = kind == "stock"
    settings = {
        "output_dir": str(output),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "label_names": ["image_ids"],
        **arguments,
    }
    return (Trainer if stock else R2D2Trainer)(
        model=model,
        args=(TrainingArguments if stock else R2D2TrainingArguments)(**settings),
        train_dataset=unmasked() if data is None else data,
        eval_dataset=unmasked() if "eval_strategy" in arguments else None,
        data_collator=collate,
        callbacks=[callback()] if callbacks is None else callbacks,
    )


def everything(run: Trainer, dual_queue: DualQueueContrastiveCallback) -> dict[str, torch.Tensor]:
    """Student, teacher, queue."""
    state = {f"student.{name}": value for name, value in run.model.state_dict().items()}
    return {**state, **dual_queue.state.state_dict()}


if __name__ == "__main__":
    folder, trainer_kind, batches, *kill = sys.argv[1:]
    torch.set_num_threads(1)
    extra = [KillAt(int(step)) for step in kill]
    trainer(Path(folder), trainer_kind, int(batches), [callback(), *extra]).train()

"""A tiny training run with distillation, as the tests and the process that gets killed start it.

python -m tests.distillation.runs OUTPUT {stock,r2d2} ACCUMULATION [KILL_AT_STEP]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_r2d2 import R2D2ForPreTraining, R2D2Trainer, R2D2TrainingArguments, TwoWayDistillationCallback
from modeling_r2d2.distillation import FeatureGuidedSettings, TargetGuidedSettings
from tests.tiny import tiny_batch, tiny_config

STEPS, BATCH = 8, 4


class Pairs(Dataset):
    """Encoded pairs; `size` not a multiple of the batch makes a short last one."""

    def __init__(self, size: int = 18):
        self.rows = tiny_batch(pairs=size)

    def __len__(self) -> int:
        return len(self.rows["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[index] for name, rows in self.rows.items()}


class KillAt(TrainerCallback):
    """`kill -9` in the middle of a step: after its backward pass, before anything of it is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def callback(**kwargs) -> TwoWayDistillationCallback:
    return TwoWayDistillationCallback(
        TargetGuidedSettings(queue_size=10, alpha_ramp=(0.0, 0.5)),
        FeatureGuidedSettings(block=8),
        momentum=0.9,
        **kwargs,
    )


def trainer(
    output: Path,
    kind: str = "stock",
    accumulation: int = 1,
    callbacks: list[TrainerCallback] | None = None,
    tower: str = "clip",
    data: Dataset | None = None,
    publish: str | None = None,
    **arguments: Any,
) -> Trainer:
    set_seed(0)
    model = R2D2ForPreTraining(tiny_config(tower, dropout=0.1))
    trainer_class, argument_class = (
        (Trainer, TrainingArguments) if kind == "stock" else (R2D2Trainer, R2D2TrainingArguments)
    )
    return trainer_class(
        model=model,
        args=argument_class(
            **{
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
        ),
        train_dataset=data or Pairs(),
        eval_dataset=Pairs() if "eval_strategy" in arguments else None,
        callbacks=[callback()] if callbacks is None else callbacks,
        **({} if publish is None else {"publish": publish}),
    )


def everything(run: Trainer, distillation: TwoWayDistillationCallback) -> dict[str, torch.Tensor]:
    """Student, teacher, queue, centre."""
    state = {f"student.{name}": value for name, value in run.model.state_dict().items()}
    return {**state, **distillation.state.state_dict()}


if __name__ == "__main__":
    folder, kind, accumulation, *kill = sys.argv[1:]
    torch.set_num_threads(1)
    extra = [KillAt(int(step)) for step in kill]
    trainer(Path(folder), kind, int(accumulation), [callback(), *extra]).train()

"""What fine-tuning does, and the presets: the authors' hyper-parameters, and ones for small data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED, require_number, require_numbers
from .parameters import Decay

Task = Literal["retrieval", "matching", "caption", "classification"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass
class LoRASettings:
    """Low-rank adapters through PEFT.

    rank, alpha, dropout: of LoRA; the update is scaled by alpha / rank. dora: weight-decomposed (DoRA). targets:
    patterns on module names whose linear layers (and convolutions) get an adapter; None: all that are not frozen.
    train_also: patterns of parameters that train besides the adapters, whole (those of the default where the model
    has them).

    Raises:
        ValueError: a number out of its range.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    dora: bool = False
    targets: tuple[str, ...] | None = None
    train_also: tuple[str, ...] = ("temperature", "classifier")

    def __post_init__(self):
        require_numbers(self, {"rank": COUNT, "alpha": POSITIVE, "dropout": {"least": 0, "below": 1}}, "LoRA's ")


@dataclass
class FinetuningSettings:
    """What `finetune` does; most have an option of the same name on the command line.

    Args:
        output: folder of checkpoints and of the final model.
        task: retrieval (GCPR + FGR), matching (labelled pairs), caption, classification.
        epochs, batch_size (per worker), gradient_accumulation: length and size of the run.
        learning_rate, weight_decay, decay (what decays, see `parameter_groups`), rates (pattern -> factor on the
            rate), max_grad_norm (0: no clipping): AdamW.
        schedule: "retrieval" or "matching", the authors' (see `schedules`), or a scheduler of transformers.
        warmup_steps: of the schedule, a share of all steps where it is below 1; for "matching" half of its period.
        warmup_rate: where the retrieval schedule starts.
        freeze: patterns of parameters that do not train. lora: None: everything that is not frozen trains.
        multi_positive: pairs of one caption are positives of each other, not only pairs of one picture.
        augment: the paper's augmentation of pictures.
        patience: stop after so many evaluations without a better one; 0: train to the end. The best checkpoint is
            kept wherever there are validation pairs and `patience` is set.
        eval_every: epochs between evaluations. workers: data loader processes. log_every: in steps.
        prompts: templates with {} whose text embeddings the head of a classifier begins with; none: random weights.
        resume: go on from the last checkpoint in `output`. overwrite: replace a model that is there.
        arguments: further `TrainingArguments`, by name.

    Raises:
        ValueError: an unknown task, or a value out of its range.
    """

    output: Path
    task: Task = "retrieval"
    epochs: int = 10
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 1e-5
    weight_decay: float = 0.05
    decay: Decay = "matrices"
    rates: dict[str, float] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    schedule: str = "cosine"
    warmup_steps: float = 0.05
    warmup_rate: float = 1e-6
    freeze: tuple[str, ...] = ()
    lora: LoRASettings | None = None
    multi_positive: bool = True
    augment: bool = True
    patience: int = 0
    eval_every: int = 1
    prompts: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 2
    log_every: int = 10
    resume: bool = False
    overwrite: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.output = Path(self.output)
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; there are {', '.join(TASKS)}")
        require_numbers(self, _RANGES)
        for pattern, rate in self.rates.items():
            require_number(f"the rate of {pattern}", rate, **NOT_NEGATIVE)
        if self.task == "retrieval" and self.batch_size < 2:
            raise ValueError("retrieval compares the pairs of a batch: batch_size must be at least 2")
        if self.schedule == "matching" and self.warmup_steps < 1:
            raise ValueError("warmup_steps is half the period of the matching schedule: at least 1")
        if without := [prompt for prompt in self.prompts if "{}" not in prompt]:
            raise ValueError(f"the prompt {without[0]!r} has no {{}} for the class: all classes would begin alike")

    def warmup_of(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return math.ceil(self.warmup_steps * steps) if self.warmup_steps < 1 else int(self.warmup_steps)

    @classmethod
    def from_preset(cls, task: Task, output: Path | str, preset: str | None = None, **overrides: Any):
        """Settings of a preset; `overrides` of None leave its values.

        Args:
            preset: "published" (retrieval and matching: the authors' hyper-parameters, except that `batch_size` is
                theirs per GPU, of eight), "default" (ours, for the other two), or "small" (ours, for a few hundred
                or thousand pairs). None: published where there is one.

        Raises:
            ValueError: unknown task, preset or setting.
        """
        if task not in PRESETS:
            raise ValueError(f"task is {task!r}; there are {', '.join(TASKS)}")
        preset = preset or next(iter(PRESETS[task]))
        if preset not in PRESETS[task]:
            raise ValueError(f"no preset {preset!r} for {task}; there are {', '.join(PRESETS[task])}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(f"no such settings: {', '.join(unknown)}")
        chosen = {name: value for name, value in overrides.items() if value is not None}
        return cls(output=Path(output), task=task, **{**PRESETS[task][preset], **chosen})


_RANGES = {
    "epochs": COUNT,
    "batch_size": COUNT,
    "gradient_accumulation": COUNT,
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "warmup_rate": NOT_NEGATIVE,
    "patience": COUNT_OR_NONE,
    "eval_every": COUNT,
    "seed": SEED,
    "workers": COUNT_OR_NONE,
    "log_every": COUNT,
}
_SMALL: Mapping[str, Any] = {
    "epochs": 30,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_steps": 0.1,
    "patience": 5,
    "lora": LoRASettings(),
}
#: By task and name; the first is the default. Published: the authors' fine-tuning code.
PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "retrieval": {
        "published": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-5,
            "weight_decay": 0.05,
            "decay": "all",
            "max_grad_norm": 0.0,
            "schedule": "retrieval",
            "warmup_steps": 500,
            "warmup_rate": 1e-6,
            "freeze": ("vision_model",),
        },
        "small": _SMALL,
    },
    "matching": {
        "published": {
            "epochs": 20,
            "batch_size": 64,
            "learning_rate": 3e-6,
            "weight_decay": 0.01,
            "decay": "not-biases",
            "max_grad_norm": 0.0,
            "schedule": "matching",
            "warmup_steps": 3125,
            "freeze": ("vision_model",),
        },
        "small": _SMALL,
    },
    "caption": {
        "default": {"epochs": 10, "batch_size": 32, "learning_rate": 5e-5, "freeze": ("vision_model",)},
        # an MLM head that learns to look ahead needs more than adapters: everything but the image tower trains
        "small": {**_SMALL, "lora": None, "freeze": ("vision_model",), "learning_rate": 5e-4},
    },
    "classification": {
        "default": {"epochs": 10, "batch_size": 32, "learning_rate": 1e-4, "prompts": ("一张{}的图片",)},
        "small": {
            **_SMALL,
            "prompts": ("{}",),
        },
    },
}

__all__ = ["PRESETS", "TASKS", "FinetuningSettings", "LoRASettings", "Task"]

"""What fine-tuning does, and the presets: the authors' hyper-parameters, and ones for small data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from ..jobs.settings import RunSettings
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PART, POSITIVE, require_number, require_numbers
from ..processing.files.settings import setting

Decay = Literal["all", "not-biases", "matrices"]
Task = Literal["retrieval", "matching", "caption", "classification"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass
class LoRASettings:
    """Low-rank adapters through PEFT.

    Args:
        rank: of LoRA.
        alpha: the update is scaled by alpha / rank.
        dropout: of LoRA.
        dora: weight-decomposed (DoRA).
        targets: patterns on module names whose linear layers (and convolutions) get an adapter; None: all that are not
            frozen.
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
        require_numbers(self, {"rank": COUNT, "alpha": POSITIVE, "dropout": PART}, "LoRA's ")


@dataclass(kw_only=True)
class FinetuningSettings(RunSettings):
    """What `finetune` does; the command line has the same names.

    Args:
        decay: what decays, see `parameter_groups`.
        warmup_rate: where the retrieval schedule starts.
        lora: None: everything that is not frozen trains.
        arguments: further `TrainingArguments`, by name.

    Raises:
        ValueError: an unknown task, or a value out of its range.
    """

    panel: ClassVar[str] = "Training"
    task: Task = setting("retrieval", "What to learn.", argument=True)
    preset: str | None = setting(
        None,
        "Where values come from that are not given: 'published' (the authors' hyper-parameters, for retrieval and "
        "matching), 'default' (ours, for the other two) or 'small' (ours, for a few hundred or thousand pairs).",
    )
    num_train_epochs: int = setting(10, "Passes over the pairs.", "--epochs", bounds=COUNT)
    per_device_train_batch_size: int = setting(32, "The batch size of each worker.", "--batch-size", bounds=COUNT)
    learning_rate: float = setting(1e-5, "The highest learning rate of AdamW.", bounds=POSITIVE)
    lr_scheduler_type: str = setting(
        "cosine", "The schedule: 'retrieval' or 'matching', the authors', or one of transformers.", "--schedule"
    )
    warmup_steps: float = setting(
        0.05,
        "Steps of warm-up; below 1 a share of all steps. Of the schedule 'matching' it is half of the period.",
        bounds=NOT_NEGATIVE,
    )
    freeze: tuple[str, ...] = setting((), "A part, or a pattern of names, that does not train. It can be repeated.")
    rates: dict[str, float] = setting(
        {}, "A factor on the learning rate of a part: text_model=0.1. It can be repeated.", "--rate"
    )
    multi_positive: bool = setting(
        True, "Pairs of one caption are positives of each other, not only pairs of one picture."
    )
    augment: bool = setting(True, "Augment pictures as the paper does.")
    mirror: bool = setting(True, "Mirror half of the pictures. Not where texts tell left from right.")
    patience: int = setting(
        0,
        "Stop after so many evaluations without a better one, and keep the best checkpoint. With 0 the run trains to "
        "its end.",
        bounds=COUNT_OR_NONE,
    )
    eval_every: int = setting(1, "Epochs between evaluations.", bounds=COUNT)
    prompts: tuple[str, ...] = setting(
        (),
        "A template with {}, such as 一张{}的图片, with whose text embeddings the head of a classifier begins. It can "
        "be repeated. Without one its weights are random.",
        "--prompt",
    )
    bf16: bool = setting(False, "Compute in bfloat16.")
    decay: Decay = "matrices"
    warmup_rate: float = 1e-6
    lora: LoRASettings | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("warmup_rate", self.warmup_rate, **NOT_NEGATIVE)
        for pattern, rate in self.rates.items():
            require_number(f"the rate of {pattern}", rate, **NOT_NEGATIVE)
        if self.task == "retrieval" and self.per_device_train_batch_size < 2:
            raise ValueError("retrieval compares the pairs of a batch: per_device_train_batch_size must be at least 2")
        if self.lr_scheduler_type == "matching" and self.warmup_steps < 1:
            raise ValueError("warmup_steps is half the period of the matching schedule: at least 1")
        if without := [prompt for prompt in self.prompts if "{}" not in prompt]:
            raise ValueError(f"the prompt {without[0]!r} has no {{}} for the class: all classes would begin alike")

    def warmup_of(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return math.ceil(self.warmup_steps * steps) if self.warmup_steps < 1 else int(self.warmup_steps)

    @classmethod
    def from_preset(cls, task: Task, output: Path | str, preset: str | None = None, **overrides: Any) -> Self:
        """Settings of a preset.

        Args:
            task: what to learn.
            output: the folder of the run.
            preset: "published" (retrieval and matching: the authors' hyper-parameters, except that the batch size is
                theirs per GPU, of eight), "default" (ours, for the other two), or "small" (ours, for a few hundred
                or thousand pairs). None: published where there is one.
            overrides: settings by name; of those that are None the preset's values stand.

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
        return cls(output=Path(output), task=task, preset=preset, **{**PRESETS[task][preset], **chosen})


_SMALL: Mapping[str, Any] = {
    "num_train_epochs": 30,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "patience": 5,
    "lora": LoRASettings(),
}
#: By task and name; the first is the default. Published: the authors' fine-tuning code.
PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "retrieval": {
        "published": {
            "num_train_epochs": 10,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-5,
            "weight_decay": 0.05,
            "decay": "all",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "retrieval",
            "warmup_steps": 500,
            "warmup_rate": 1e-6,
            "freeze": ("vision_model",),
        },
        "small": _SMALL,
    },
    "matching": {
        "published": {
            "num_train_epochs": 20,
            "per_device_train_batch_size": 64,
            "learning_rate": 3e-6,
            "weight_decay": 0.01,
            "decay": "not-biases",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "matching",
            "warmup_steps": 3125,
            "freeze": ("vision_model",),
        },
        "small": _SMALL,
    },
    "caption": {
        "default": {
            "num_train_epochs": 10,
            "per_device_train_batch_size": 32,
            "learning_rate": 5e-5,
            "freeze": ("vision_model",),
        },
        # an MLM head that learns to look ahead needs more than adapters: everything but the image tower trains
        "small": {**_SMALL, "lora": None, "freeze": ("vision_model",), "learning_rate": 5e-4},
    },
    "classification": {
        "default": {
            "num_train_epochs": 10,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-4,
            "prompts": ("一张{}的图片",),
        },
        "small": {
            **_SMALL,
            "prompts": ("{}",),
        },
    },
}

__all__ = ["PRESETS", "TASKS", "Decay", "FinetuningSettings", "LoRASettings", "Task"]

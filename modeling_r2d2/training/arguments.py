"""Training arguments with the defaults that contrastive pre-training needs."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from ..jobs.settings import RunSettings
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PART, POSITIVE, SEED, require_numbers


@dataclass
class R2D2TrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with other defaults.

    - `train_sampling_strategy="sequential"`: `PretrainingDataset` shuffles by itself, statelessly, so that a
      resumed run sees the very samples that the uninterrupted one would have.
    - `dataloader_drop_last=True`: a short last batch has fewer negatives, and workers must hold equal numbers.
    - `label_names=["image_ids"]`: what `retrieval_metrics` finds the true pairs by.
    - `remove_unused_columns=False`: the collator reads pictures and texts, which `forward` does not name.
    - `logging_nan_inf_filter=False`: a loss that is not finite stops the run instead of being logged as another.
    - `weight_decay=0.05`, cosine decay after 5 % of warm-up.

    And two more: `grad_cache_chunk`, the pairs that pass the towers at once while the whole batch is compared, see
    `training.grad_cache`; 0: the whole batch. `gradient_shares`: at each log, measure which share each objective has in
    the gradient that reaches the towers, see `training.gradient_shares`; it costs a backward pass of the ranker for
    every objective that reads it, about a quarter of a step, at the steps that are logged alone.

    Raises:
        ValueError: a number out of its range, NaN and infinity too; `gradient_shares` together with `grad_cache_chunk`
            or `torch_compile`.
    """

    train_sampling_strategy: str = "sequential"
    dataloader_drop_last: bool = True
    label_names: list[str] | None = field(default_factory=lambda: ["image_ids"])
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    weight_decay: float = 0.05
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    report_to: str | list[str] = "none"
    grad_cache_chunk: int = field(default=0, metadata={"help": "Pairs that pass the towers at once; 0: the batch."})
    gradient_shares: bool = field(default=False, metadata={"help": "Log each objective's share in the gradient."})

    def __post_init__(self):
        require_numbers(self, _RANGES)
        # Else several processes without a GPU would each train, and save, as if they were alone.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if self.gradient_shares and (self.grad_cache_chunk or self.torch_compile):
            raise ValueError(
                "gradient_shares reads the gradients between towers and objectives, which neither grad_cache_chunk (a "
                "chunk's graph is gone before the next one's) nor torch_compile (its graph shows none) leaves to read"
            )


_RANGES = {
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": PART,
    "adam_beta2": PART,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "max_steps": {"least": -1, "whole": True},
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "dataloader_num_workers": COUNT_OR_NONE,
    "grad_cache_chunk": COUNT_OR_NONE,
    "seed": SEED,
}


def training_arguments(settings: RunSettings, **others: Any) -> R2D2TrainingArguments:
    """A run's settings as the Trainer takes them: those of the same name, `others`, and last its `arguments`.

    Raises:
        ValueError: a number out of its range.
    """
    known = {each.name for each in fields(R2D2TrainingArguments)}
    shared = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name in known}
    return R2D2TrainingArguments(
        **{
            **shared,
            "output_dir": str(settings.output),
            "dataloader_pin_memory": torch.cuda.is_available(),
            "logging_strategy": "steps" if settings.logging_steps else "no",
            "logging_steps": settings.logging_steps or 500,
            **others,
            **getattr(settings, "arguments", {}),
        }
    )

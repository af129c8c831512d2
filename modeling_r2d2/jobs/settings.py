"""What every training run takes, under transformers' names; imports no torch, so that help does not wait for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED
from ..processing.files.settings import require_settings, setting


@dataclass(kw_only=True)
class RunSettings:
    """Folder, length and optimizer of a run; where transformers' `TrainingArguments` have a setting, it has their name.

    Raises:
        ValueError: a value out of its range.
    """

    panel: ClassVar[str] = "Run"
    output: Path = setting(help="The folder for checkpoints and the model.")
    resume: bool = setting(False, "Go on from the last checkpoint in the output folder.")
    overwrite: bool = setting(False, "Replace a model that is there.")
    per_device_train_batch_size: int = setting(64, "The batch size of each worker.", "--batch-size", bounds=COUNT)
    gradient_accumulation_steps: int = setting(
        1, "Batches whose gradients make one step.", "--gradient-accumulation", bounds=COUNT
    )
    learning_rate: float = setting(1e-4, "The highest learning rate of AdamW.", bounds=POSITIVE)
    weight_decay: float = setting(0.05, "The weight decay of AdamW.", bounds=NOT_NEGATIVE)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm. With 0 they are not.", bounds=NOT_NEGATIVE)
    seed: int = setting(0, "Everything random of a run follows from it.", bounds=SEED)
    dataloader_num_workers: int = setting(2, "Processes that load data.", "--workers", bounds=COUNT_OR_NONE)
    logging_steps: int = setting(10, "Steps between logs; 0 means never.", "--log-every", bounds=COUNT_OR_NONE)
    save_total_limit: int = setting(2, "Checkpoints that are kept, the newest ones.", bounds=COUNT)

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        require_settings(self)


__all__ = ["RunSettings"]

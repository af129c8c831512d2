"""What the demo does; imports no torch, so that help does not wait for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED
from ..processing.files.settings import require_settings, setting

TEST_VENDORS = ("twitter", "windows")


@dataclass(kw_only=True)
class DemoSettings:
    """What `r2d2 demo` takes.

    Args:
        recipe: the objectives; None: the demo's own.
    """

    output: Path = setting(Path("runs/demo"), "The folder for the model, its card and the pictures.")
    max_steps: int = setting(1300, "The number of training steps.", "--steps", bounds=COUNT)
    per_device_train_batch_size: int = setting(150, "The batch size.", "--batch-size", bounds=COUNT)
    learning_rate: float = setting(2e-3, "The highest learning rate of AdamW.", bounds=POSITIVE)
    weight_decay: float = setting(0.1, "The weight decay of AdamW.", bounds=NOT_NEGATIVE)
    candidates: int = setting(32, "Pairs per query that the ranker sees in the two-stage search.", bounds=COUNT)
    seed: int = setting(0, "Everything random of the run follows from it.", bounds=SEED)
    dataloader_num_workers: int = setting(1, "Processes that load data.", "--workers", bounds=COUNT_OR_NONE)
    logging_steps: int = setting(20, "Steps between logs; 0 means never.", "--log-every", bounds=COUNT_OR_NONE)
    held_out: tuple[str, ...] = setting(
        TEST_VENDORS, "A vendor that the model is evaluated on and not trained on. It can be repeated."
    )
    overwrite: bool = setting(False, "Replace a model that is there.")
    recipe: Any = None

    def __post_init__(self) -> None:
        require_settings(self)


__all__ = ["TEST_VENDORS", "DemoSettings"]

"""Data loading of the demo: the share of the training time spent waiting for batches, with 2 workers.

    python benchmarks/data_loading.py [--quick]

Needs the packages of the extra `[demo]`.
"""

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from common import Check, Table, arguments, finish, median
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from modeling_r2d2.cli.demo_run import TRAINING_VENDORS, demo_trainer
from modeling_r2d2.cli.demo_settings import DemoSettings
from modeling_r2d2.jobs.progress import LossProgressCallback
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from modeling_r2d2.training.trainer import R2D2Trainer


class _Waits(TrainerCallback):
    """Keeps what the trainer logs about its speed."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.speeds: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """A log of training, not the summary at its end."""
        if logs and "data_wait" in logs:
            self.waits.append(logs["data_wait"])
            self.speeds.append(logs["images_per_second"])


def trainer_without_evaluation(output: Path, steps: int, log_every: int, workers: int, batch_size: int) -> R2D2Trainer:
    """The demo's own trainer, which neither evaluates nor draws a progress bar."""
    settings = DemoSettings(
        output=output, max_steps=steps, dataloader_num_workers=workers, per_device_train_batch_size=batch_size
    )
    trainer = demo_trainer(settings, EmojiPairs(TRAINING_VENDORS, calibration="exclude"), galleries={})
    trainer.args.eval_strategy = IntervalStrategy.NO
    trainer.args.logging_steps = log_every
    trainer.remove_callback(LossProgressCallback)
    return trainer


def loading_speed(batches: Iterable[dict], skip: int, count: int) -> float:
    """Images per second of the data loader with nothing else to do, after `skip` batches of warm-up."""
    images, started = 0, 0.0
    for number, batch in enumerate(batches):
        if number == skip:
            started = time.perf_counter()
        elif number > skip:
            images += len(batch["image_ids"])
        if number == skip + count:
            break
    return images / (time.perf_counter() - started)


def measure(steps: int, log_every: int, workers: int, batch_size: int, quick: bool = False) -> Table:
    """Train, and read the waits after the first log, in which the workers start and decode every picture once."""
    waits = _Waits()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_without_evaluation(Path(folder), steps, log_every, workers, batch_size)
        trainer.add_callback(waits)
        alone = loading_speed(trainer.get_train_dataloader(), skip=log_every // 2, count=log_every)
        trainer.train()
    later = slice(1, None)
    share, trained = median(waits.waits[later]), median(waits.speeds[later])
    return Table(
        "data_loading",
        "Data loading, demo set",
        "The demo's training (decoding once, then augmentation, masking and padding of every batch) as `R2D2Trainer` "
        "logs it, medians of its logs after the first; and the data loader with nothing else to do.",
        {"what": "", "images/s": ".0f", "share of time waiting": ".2%"},
        [
            {"what": "training", "images/s": trained, "share of time waiting": share},
            {"what": "data loader alone", "images/s": alone},
        ],
        {"workers": workers, "batch": batch_size, "steps": steps, "log_every": log_every},
        [Check("share of the training time spent waiting for data", share, 0.05, "<", ".2%")],
        [f"waiting in the first {log_every} steps, with the start of the workers: {waits.waits[0]:.2%}"],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=8)
    parser.add_argument("--workers", type=int, default=2, help="data loader processes (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        table = measure(steps=4, log_every=2, workers=1, batch_size=8, quick=True)
    else:
        table = measure(20 * options.rounds, 20, options.workers, DemoSettings.per_device_train_batch_size)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

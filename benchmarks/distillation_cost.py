"""What teacher and queue cost beside the forward passes: the update of the moving average and the queue's work, as
shares of a full training step.

    python benchmarks/distillation_cost.py [--quick]
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from common import Check, Table, arguments, finish, interleave, median
from r2d2_step import TEXTS, batch_of, small_vit, step_of

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import FeatureQueue, MomentumTeacher


def one_by_one(teacher: MomentumTeacher, student: R2D2ForPreTraining, momentum: float) -> None:
    """The update without fused operations, for comparison."""
    weights = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in teacher.model.named_parameters():
            parameter.mul_(momentum).add_(weights[name], alpha=1 - momentum)


def measure(rows: int, rounds: int, quick: bool = False) -> Table:
    """The whole step and each part on its own, in turn."""
    torch.manual_seed(0)
    config, targets, features = small_vit()
    student = R2D2ForPreTraining(config).train()
    batch = batch_of(rows, TEXTS["captions of 12–33 characters"])
    teacher = MomentumTeacher(student)
    queue = FeatureQueue(targets.queue_size, rows, config.projection_dim)
    image, text, ids = *torch.randn(2, rows, config.projection_dim), torch.arange(rows)

    def queue_work() -> None:
        queue.push(image, text, ids)
        queue.candidates()
        queue.age(0.99)

    parts: dict[str, Callable[[], Any]] = {
        "teacher update, fused": lambda: teacher.update(student, 0.995),
        "teacher update, parameter by parameter": lambda: one_by_one(teacher, student, 0.995),
        "queue: write, read, age": queue_work,
    }
    seconds = interleave({"whole step": step_of(student, (targets, features), batch), **parts}, rounds)
    step = seconds["whole step"]
    shares = {name: median([a / b for a, b in zip(values, step, strict=True)]) for name, values in seconds.items()}
    return Table(
        "distillation_cost",
        "Teacher and queue beside the step, small ViT",
        "Each part run on its own between whole steps; medians over the rounds.",
        {"work": "", "ms": ".3f", "share of a step": ".2%"},
        [{"work": n, "ms": 1e3 * median(v), "share of a step": shares[n]} for n, v in seconds.items()],
        {"pairs": rows, "queue": targets.queue_size, "rounds": rounds},
        [
            Check("teacher update, share of a step", shares["teacher update, fused"], 0.03, "<", ".2%"),
            Check("queue operations, share of a step", shares["queue: write, read, age"], 0.01, "<", ".2%"),
        ],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=9).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    table = measure(8, 2, quick=True) if options.quick else measure(128, options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

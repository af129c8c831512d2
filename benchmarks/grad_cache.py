"""Gradient caching: peak memory of a large batch in chunks against a small batch at once, all objectives.

    python benchmarks/grad_cache.py [--quick]

Every size runs in a process of its own, which reports how far its peak resident memory rose during one step, model
and batch already in place. The similarity matrices of the large batch (with the teacher's targets over batch and
queue) are measured the same way on random embeddings, and set apart.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from common import Check, Table, arguments, finish
from r2d2_step import TEXTS, batch_of, small_vit

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import DistillationState
from modeling_r2d2.model.modeling_r2d2 import normalize
from modeling_r2d2.training.grad_cache import cached_backward

LENGTHS = TEXTS["captions of 12–33 characters"]


def peak() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_step(kind: str, rows: int, chunk: int, queue: int) -> dict[str, float]:
    """In this process: one step, and by how much the peak rose."""
    torch.manual_seed(0)
    config, *settings = small_vit(queue)
    model = R2D2ForPreTraining(config).train()
    state = DistillationState(model, *settings, batch=rows)
    state.queue.reliability.fill_(1.0)
    state.queue._written = state.queue.slots  # a full queue
    state.queue.images.normal_(), state.queue.texts.normal_()
    batch = batch_of(rows, LENGTHS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # a step of a few pairs: what libraries allocate once is not counted
    few = {name: value[:4] for name, value in batch.items()}
    model(**few).loss.backward()
    before = peak()
    if kind == "similarities":
        image, text = (normalize(torch.randn(rows, config.projection_dim)) for _ in range(2))
        state._local = (image, text)
        placement, temperature = state.target_guided.reliability, model.current_temperature()
        guidance = state._target_guidance(placement, batch["image_ids"], temperature, 0.4)
        _, losses = model.compare_pairs(image.requires_grad_(), text.requires_grad_(), batch["image_ids"], guidance)
        losses["loss_tgd"].backward()
    else:
        teacher = state.targets(batch, 0, model.current_temperature(), 0.4, chunk or None)
        if chunk:
            cached_backward(model, batch, chunk, teacher)
        else:
            model(**batch, teacher=teacher).loss.backward()
    return {"bytes": peak() - before}


def in_own_process(kind: str, rows: int, chunk: int, queue: int, threads: int) -> float:
    """MiB that the peak rose by."""
    arguments = [kind, rows, chunk, queue, threads]
    command = [sys.executable, str(Path(__file__)), "--one", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])["bytes"] / 2**20


def measure(small: int, large: int, chunk: int, queue: int, threads: int, quick: bool = False) -> Table:
    """Small batch at once, large batch in chunks, and the large batch's similarities alone."""
    plain = in_own_process("step", small, 0, queue, threads) or 1 / 256  # a page; tiny sizes may need no new one
    cached = in_own_process("step", large, chunk, queue, threads)
    similarities = in_own_process("similarities", large, 0, queue, threads)
    beyond = cached - similarities
    rows = [
        {"step": f"{small} pairs at once", "MiB": plain, "ratio": 1.0},
        {"step": f"{large} pairs, {chunk} at a time", "MiB": cached, "ratio": cached / plain},
        {"step": f"similarities and targets of {large} pairs alone", "MiB": similarities},
        {"step": "the second beyond the third", "MiB": beyond, "ratio": beyond / plain},
    ]
    return Table(
        "grad_cache",
        "Gradient caching: memory of a large batch",
        "How far one training step with all objectives raised the peak resident memory (model, gradients and batch "
        "in place before). Gradients equal those of the undivided step to 1e-5 (tests/training/test_grad_cache.py).",
        {"step": "", "MiB": ".0f", "ratio": ".2f"},
        rows,
        {"small_batch": small, "large_batch": large, "chunk": chunk, "queue": queue, "patches": 64},
        [Check(f"memory of {large} pairs beyond their similarities / memory of {small}", beyond / plain, 1.3, "<")],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--one", help="used by this script itself: one step in this process")
    options = parser.parse_args(argv)
    if options.one:
        kind, rows, chunk, queue, threads = json.loads(options.one)
        torch.set_num_threads(threads)
        print(json.dumps(one_step(kind, rows, chunk, queue)))
        return 0
    if options.quick:
        return finish(measure(8, 16, 4, 16, 1, quick=True), options.tables)
    return finish(measure(256, 4096, 128, 4096, options.threads), options.tables)


if __name__ == "__main__":
    sys.exit(main())

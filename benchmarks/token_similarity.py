"""Token-wise contrastive step: peak memory against the size of the batch, for a fixed chunk.

    python benchmarks/token_similarity.py [--quick]

Similarity, loss and gradients of B images of 49 tokens and B texts of up to 32 tokens, 256 wide (FILIP, ViT-B/32);
beside it the same with all products at once, as torch differentiates them. Every figure comes from a fresh process:
the peak of its resident memory during the step, less what it held before inputs were made; and its processor time,
which other work on the machine does not stretch as it does wall time.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Check, Table, arguments, finish, median
from torch import Tensor, nn

from modeling_r2d2.model.losses_r2d2 import contrastive_targets
from modeling_r2d2.model.token_similarity_r2d2 import (
    TokenWiseSimilarity,
    token_wise_contrastive_loss,
    token_wise_similarity,
)

TOKENS, LENGTH, WIDTH, CHUNK = 49, 32, 256, 64
SIZES, QUICK_SIZES = (64, 128, 256, 512), (8, 16)
#: Batches of which all products at once still fit into a small machine's memory (4 GB for 512).
DIRECT_UP_TO = 256
CHUNKED, DIRECT = "in chunks", "all at once"
PAGE = 4096  # what the figures are counted in


def compare_in_chunks(chunk: int) -> Callable[..., TokenWiseSimilarity]:
    """The package's."""
    return lambda images, texts, mask: token_wise_similarity(images, texts, mask, chunk_size=chunk)


def compare_at_once(images: Tensor, texts: Tensor, mask: Tensor) -> TokenWiseSimilarity:
    """All products in one tensor, kept for the backward pass."""
    products = (images.flatten(0, 1) @ texts.flatten(0, 1).t()).view(*images.shape[:2], *texts.shape[:2])
    per_image = products.masked_fill(~mask, -torch.inf).amax(dim=3).mean(dim=1)
    per_text = (products.amax(dim=1) * mask).sum(dim=2) / mask.sum(dim=1)
    return TokenWiseSimilarity(per_image, per_text.t())


def step(size: int, compare: Callable[..., TokenWiseSimilarity], lengths: range) -> None:
    """Forward and backward on random unit tokens and texts of all `lengths`."""
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.normalize(torch.randn(size, TOKENS, WIDTH, generator=generator), dim=-1).requires_grad_()
    texts = nn.functional.normalize(torch.randn(size, LENGTH, WIDTH, generator=generator), dim=-1).requires_grad_()
    ends = torch.randint(lengths.start, lengths.stop, (size, 1), generator=generator)
    mask = torch.arange(LENGTH) < ends
    targets = contrastive_targets(torch.eye(size, dtype=torch.bool))
    token_wise_contrastive_loss(compare(images, texts, mask), torch.tensor(0.07), targets).backward()


def resident_peak() -> tuple[int, int]:
    """Bytes that this process holds in memory, and the most it has held since the last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return tuple(1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))


def measure_here(job: dict[str, Any]) -> dict[str, float]:
    """Peak memory of one step in bytes, and its processor seconds, the median over more steps in the same process."""
    torch.set_num_threads(job["threads"])
    compare = compare_in_chunks(job["chunk"]) if job["chunk"] else compare_at_once
    lengths = range(LENGTH, LENGTH + 1)
    step(2, compare, lengths)  # what torch sets up on first use is not the step's
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, _ = resident_peak()
    seconds = []
    for number in range(job["rounds"]):
        start = time.process_time()
        step(job["size"], compare, lengths)
        seconds.append(time.process_time() - start)
        if number == 0:
            _, peak = resident_peak()
    return {"bytes": max(peak - before, PAGE), "seconds": median(seconds)}


def measure_fresh(**job: Any) -> dict[str, float]:
    """`measure_here` in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def measure(sizes: tuple[int, ...], chunk: int, rounds: int, quick: bool = False) -> Table:
    """Every size in chunks, the smaller ones also all at once."""
    rows, peaks = [], {CHUNKED: {}, DIRECT: {}}
    for size in sizes:
        for name, used in ((CHUNKED, chunk), (DIRECT, 0)):
            if name == DIRECT and size > DIRECT_UP_TO:
                continue
            figures = measure_fresh(size=size, chunk=used, rounds=rounds, threads=torch.get_num_threads())
            peaks[name][size] = figures["bytes"]
            rows.append(
                {"batch": size, "products": name, "MB": figures["bytes"] / 1e6, "CPU seconds": figures["seconds"]}
            )
    pairs = list(zip(sizes, sizes[1:], strict=False))
    growth = {name: max(of[b] / of[a] for a, b in pairs if b in of) for name, of in peaks.items()}
    return Table(
        "token_similarity",
        "Token-wise contrastive step, peak memory",
        "Similarity both ways, contrastive loss and gradients; tokens and their gradients are part of the figure. "
        "Each row is a fresh process.",
        {"batch": "d", "products": "", "MB": ".0f", "CPU seconds": ".2f"},
        rows,
        {"image_tokens": TOKENS, "text_tokens": LENGTH, "width": WIDTH, "chunk": chunk, "rounds": rounds},
        [Check("token-wise step in chunks, growth of peak memory when the batch doubles", growth[CHUNKED], 2.0, "<")],
        [f"All products at once: × {growth[DIRECT]:.2f} when the batch doubles."],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--worker"]:
        print(json.dumps(measure_here(json.loads(argv[1]))))
        return 0
    parser = arguments(__doc__, rounds=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        table = measure(QUICK_SIZES, chunk=4, rounds=1, quick=True)
    else:
        table = measure(SIZES, CHUNK, options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

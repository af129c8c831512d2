"""Hard negatives: what drawing and gathering them costs, as a share of a demo training step.

    python benchmarks/negatives.py [--quick]

One process of batch 256, and two gloo processes of batch 256 each, which exchange embeddings, ids and the states
of the drawn rows.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import Check, Table, arguments, finish, interleave, median
from torch import Tensor, nn

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining
from modeling_r2d2.cli.demo_run import IMAGE_SIZE, demo_config
from modeling_r2d2.model import pretraining_r2d2 as pretraining
from modeling_r2d2.model.distributed_r2d2 import gather, gather_with_ids
from modeling_r2d2.model.losses_r2d2 import draw_hard_negatives, same_identity, scaled_similarity
from modeling_r2d2.model.modeling_r2d2 import normalize

VOCABULARY = 800
#: [CLS], a name of 1 to 10 characters as the demo's are, [SEP].
LENGTHS = range(3, 13)
DRAW, EMBEDS, STATES = "drawing", "gathering embeddings and ids", "gathering the drawn states"


def training_batch(config: R2D2Config, rows: int, seed: int) -> dict[str, Tensor]:
    """A batch as the demo's collator makes it, with random pixels and tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTHS.start, LENGTHS.stop, (rows, 1), generator=generator)
    lengths[0] = LENGTHS[-1]  # the same width on all processes
    attention_mask = (torch.arange(LENGTHS[-1]) < lengths).long()
    vocabulary = config.text_config.vocab_size
    input_ids = torch.randint(5, vocabulary, attention_mask.shape, generator=generator) * attention_mask
    masked_input_ids, mlm_labels = input_ids.clone(), torch.full_like(input_ids, -100)
    masked_input_ids[:, 1], mlm_labels[:, 1] = 4, input_ids[:, 1]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(rows, IMAGE_SIZE, IMAGE_SIZE, 3, generator=generator).permute(0, 3, 1, 2),
        "image_ids": torch.arange(seed * rows, (seed + 1) * rows),
        "masked_input_ids": masked_input_ids,
        "mlm_labels": mlm_labels,
    }


def training_step(model: R2D2ForPreTraining, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW as in the demo; in several processes with DistributedDataParallel."""
    wrapped = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        wrapped(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def negative_work(model: R2D2ForPreTraining, batch: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
    """The parts of a step that exist for negatives alone, forward and backward, each on its own."""
    with torch.no_grad():
        image = model.get_image_features(batch["pixel_values"])
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    image_embeds, text_embeds = normalize(image.pooler_output), normalize(text.pooler_output)
    all_images, all_texts = gather(image_embeds), gather(text_embeds)
    temperature = model.bounded_temperature().detach()
    per_image = scaled_similarity(image_embeds, all_texts, temperature)
    per_text = scaled_similarity(text_embeds, all_images, temperature)
    positives = same_identity(batch["image_ids"], gather(batch["image_ids"]))
    work = {DRAW: lambda: draw_hard_negatives(per_image, per_text, positives)}
    if not dist.is_initialized():
        return work

    embeds = torch.cat([image_embeds, text_embeds], dim=1).requires_grad_()

    gradients: dict[torch.Size, Tensor] = {}  # in a step they come from what follows: made once, outside the time

    def back(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
        differentiable = [each for each in dict.fromkeys(outputs) if each.requires_grad]
        for each in differentiable:
            if each.shape not in gradients:
                gradients[each.shape] = torch.ones_like(each)
        torch.autograd.grad(differentiable, inputs, [gradients[each.shape] for each in differentiable])

    def gather_embeds() -> None:
        back(gather_with_ids(embeds, batch["image_ids"]), [embeds])

    text_states = text.last_hidden_state.requires_grad_()
    queries = text_states.detach().clone().requires_grad_() if model.config.rank_masked_texts else text_states
    image_states = image.last_hidden_state.requires_grad_()
    drawn = draw_hard_negatives(per_image, per_text, positives)
    inputs = [text_states, image_states] if queries is text_states else [text_states, image_states, queries]

    def gather_states() -> None:
        states, _, _ = pretraining.fetch_drawn_states(
            queries, text_states, batch["attention_mask"], image_states, drawn
        )
        back(states, inputs)

    return {**work, EMBEDS: gather_embeds, STATES: gather_states}


def measure_process(config: R2D2Config, rows: int, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of the whole step and of each part, in turn, on this process."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining._from_config(config, attn_implementation="eager").train()  # as the demo
    batch = training_batch(config, rows, seed)
    contenders = {"step": training_step(model, batch), **negative_work(model, batch)}
    before = dist.barrier if dist.is_initialized() else None
    return interleave(contenders, rounds, warmup=2, before=before)


def _worker(number: int, processes: int, config: R2D2Config, rows: int, rounds: int, threads: int, folder: str):
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=processes, rank=number)
    torch.save(measure_process(config, rows, rounds, seed=number), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def measure_processes(processes: int, config: R2D2Config, rows: int, rounds: int) -> dict[str, list[float]]:
    """The first of several gloo processes, which share this process's threads among them."""
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (processes, config, rows, rounds, threads, folder), nprocs=processes)
        return torch.load(Path(folder) / "0.pt", weights_only=True)


def measure(config: R2D2Config, rows: int, rounds: int, quick: bool = False) -> Table:
    """One process, then two."""
    measured = {1: measure_process(config, rows, rounds), 2: measure_processes(2, config, rows, rounds)}
    table_rows, checks = [], []
    for processes, seconds in measured.items():
        step = seconds.pop("step")
        parts = {**seconds, "together": [sum(values) for values in zip(*seconds.values(), strict=True)]}
        shares = {name: median([a / b for a, b in zip(values, step, strict=True)]) for name, values in parts.items()}
        table_rows.append({"processes": processes, "work": "whole step", "ms": 1e3 * median(step), "share": 1.0})
        for name, values in parts.items():
            row = {"processes": processes, "work": name, "ms": 1e3 * median(values), "share": shares[name]}
            table_rows.append(row)
        name = f"share of a step, {processes} process{'es' if processes > 1 else ''}"
        checks.append(Check(name, shares["together"], 0.02, "<", ".2%"))
    return Table(
        "negatives",
        "Hard negatives, demo model",
        "Drawing hard negatives and gathering over the processes, forward and backward, each run on its own between "
        "whole training steps of the demo model; medians over the rounds.",
        {"processes": "d", "work": "", "ms": ".2f", "share": ".2%"},
        table_rows,
        {"pairs_per_process": rows, "tokens": LENGTHS[-1], "image_size": IMAGE_SIZE, "rounds": rounds},
        checks,
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=45).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    config = demo_config(VOCABULARY)
    if options.quick:
        table = measure(config, rows=8, rounds=2, quick=True)
    else:
        table = measure(config, rows=256, rounds=options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

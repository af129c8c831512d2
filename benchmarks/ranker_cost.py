"""A step of the recipe `ranker` against one of the same objectives through towers that train.

    python benchmarks/ranker_cost.py [--quick]

A ViT-B/16 at 224 px, a BERT-base and six-layer cross encoders of random weights; the same pairs, three ranked pairs a
sample, FGR without MLM. Through towers that train, a batch passes both, GCPR with it, and FGR's gradient goes through
them. With frozen ones pictures come as their states; texts, own and wrong ones, pass the text tower without gradient.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from common import Check, Table, arguments, finish, interleave, median, ratio
from r2d2_step import TEXTS, batch_of, small_vit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining

TRAINABLE, FROZEN = "towers that train", "frozen towers, states kept"


def batches(model: R2D2ForPreTraining, rows: int) -> dict[str, dict[str, Tensor]]:
    """The same pairs for both; behind those of frozen towers as many wrong texts and pictures."""
    made = batch_of(2 * rows, TEXTS["captions of 12–33 characters"])
    side = model.config.vision_config.image_size
    pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = {name: made[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = model.eval().get_image_features(pixels).last_hidden_state
    return {
        TRAINABLE: {**{name: value[:rows] for name, value in texts.items()}, "pixel_values": pixels},
        FROZEN: {
            **texts,
            "image_states": torch.cat([states, states.roll(1, 0)]),
            "valid_negatives": torch.ones(rows, dtype=torch.bool),
        },
    }


def step_of(model: R2D2ForPreTraining, batch: dict[str, Any]) -> Callable[[], None]:
    """Forward, backward, clipping, AdamW, over what trains."""
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(config: R2D2Config, rows: int) -> dict[str, Callable[[], None]]:
    """A step of each. The model is made twice, since a frozen one trains less."""
    found = {}
    for name in (TRAINABLE, FROZEN):
        torch.manual_seed(0)
        model = R2D2ForPreTraining(type(config).from_dict(config.to_dict()))
        batch = batches(model, rows)[name]
        found[name] = step_of((model.freeze_towers() if name == FROZEN else model).train(), batch)
    return found


def multiplications(config: R2D2Config, rows: int) -> dict[str, float]:
    """Of matrix products of a step, forward and backward, in billions a pair; attention written out, to be counted."""
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    counted = {}
    for name, step in steps(config, rows).items():
        with FlopCounterMode(display=False) as counter:
            step()
        counted[name] = counter.get_total_flops() / 2 / 1e9 / rows
    return counted


def measure(rows: int, rounds: int, quick: bool = False) -> Table:
    """Both, in turn."""
    config = small_vit()[0] if quick else R2D2Config(fgd_prototypes=0)
    config.fgd_prototypes = 0
    counted = multiplications(config, min(rows, 2))
    seconds = interleave(steps(config, rows), rounds)
    share = {"time": ratio(seconds[FROZEN], seconds[TRAINABLE]), "products": counted[FROZEN] / counted[TRAINABLE]}
    return Table(
        "ranker_cost",
        "A step of the recipe ranker, ViT-B/16",
        "Forward, backward and AdamW; medians over the rounds. " + __doc__.split("\n\n")[-1].strip(),
        {
            "step": "",
            "s": ".2f",
            "pairs/s": ".2f",
            "time": ".2f",
            "10⁹ multiplications a pair": ".1f",
            "multiplications": ".2f",
        },
        [
            {
                "step": name,
                "s": median(seconds[name]),
                "pairs/s": rows / median(seconds[name]),
                "time": share["time"] if name == FROZEN else 1.0,
                "10⁹ multiplications a pair": counted[name],
                "multiplications": share["products"] if name == FROZEN else 1.0,
            }
            for name in (TRAINABLE, FROZEN)
        ],
        {"pairs": rows, "rounds": rounds},
        [Check("a step on frozen towers against one through towers that train", share["time"], 0.70, "<")],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    table = measure(2, 2, quick=True) if options.quick else measure(options.pairs, options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

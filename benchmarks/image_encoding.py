"""Image encoding of ViT-B/16: R2D2Model beside transformers' ChineseCLIPModel of the same size, and beside the
machine's own matrix multiplication.

    python benchmarks/image_encoding.py [--quick]
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from common import Check, Table, arguments, finish, interleave, median, ratio
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from modeling_r2d2 import R2D2Config, R2D2Model

#: The text towers are never run here; one layer keeps them small.
TEXT = {"num_hidden_layers": 1}


@dataclass
class Size:
    """ViT-B/16 by default."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    projection_dim: int = 768

    def tower(self) -> dict[str, int]:
        """The tower's configuration."""
        return {name: value for name, value in vars(self).items() if name != "projection_dim"}


TINY = Size(32, 2, 4, 64, 32, 16, 16)


def models(size: Size) -> dict[str, nn.Module]:
    """Both models with random weights, in evaluation mode."""
    torch.manual_seed(0)
    ours = R2D2Config(
        vision_config=size.tower(),
        text_config=TEXT,
        cross_encoder_config=None,
        projection_dim=size.projection_dim,
    )
    theirs = ChineseCLIPConfig(vision_config=size.tower(), text_config=TEXT, projection_dim=size.projection_dim)
    return {"R2D2Model": R2D2Model(ours).eval(), "ChineseCLIPModel": ChineseCLIPModel(theirs).eval()}


def forward_flops(model: nn.Module, pixel_values: Tensor) -> int:
    """Multiplications and additions of one pass, counted with the attention written out in matrix products."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model.get_image_features(pixel_values=pixel_values[:1])
    model.set_attn_implementation(attention)
    return counter.get_total_flops() * len(pixel_values)


@torch.inference_mode()
def measure(size: Size, batch: int, gemm: int, rounds: int, quick: bool = False) -> Table:
    """Time a batch of both models and a `gemm`³ product in every round."""
    contenders = models(size)
    pixel_values = torch.randn(batch, 3, size.image_size, size.image_size)
    left, right, product = (torch.randn(gemm, gemm) for _ in range(3))
    flops = {name: forward_flops(model, pixel_values) for name, model in contenders.items()}
    flops["GEMM"] = 2 * gemm**3
    runs = {name: partial(model.get_image_features, pixel_values=pixel_values) for name, model in contenders.items()}
    runs["GEMM"] = lambda: [torch.mm(left, right, out=product) for _ in range(4)]
    seconds = interleave(runs, rounds, warmup=2)
    seconds["GEMM"] = [each / 4 for each in seconds["GEMM"]]
    rate = {name: [flops[name] / each for each in measured] for name, measured in seconds.items()}
    rows = [
        {
            "model": name if name != "GEMM" else f"matrix product, {gemm}³",
            "ms": 1e3 * median(seconds[name]),
            "images/s": None if name == "GEMM" else batch / median(seconds[name]),
            "GFLOP": flops[name] / 1e9,
            "GFLOP/s": median(rate[name]) / 1e9,
            "share of the product's rate": ratio(rate[name], rate["GEMM"]),
        }
        for name in seconds
    ]
    speed = ratio(seconds["ChineseCLIPModel"], seconds["R2D2Model"])
    return Table(
        "image_encoding",
        "Image encoding, ViT-B/16, float32",
        "`get_image_features` of random weights, all contenders in every round of one run; medians, and the share as "
        "the median over the rounds of a round's own ratio.",
        {"model": "", "ms": ".1f", "images/s": ".2f", "GFLOP": ".1f", "GFLOP/s": ".0f"}
        | {"share of the product's rate": ".2f"},
        rows,
        {"batch": batch, "image_size": size.image_size, "layers": size.num_hidden_layers, "rounds": rounds},
        [Check("speed of R2D2Model, ChineseCLIPModel = 1", speed, 0.97, ">=", ".3f")],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=25).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        table = measure(TINY, batch=2, gemm=64, rounds=2, quick=True)
    else:
        table = measure(Size(), batch=8, gemm=2048, rounds=options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())

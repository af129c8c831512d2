"""What BriVL's authors' program computed (tests/data/golden/brivl), and its small models converted."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizer

from modeling_r2d2 import BriVLConfig, BriVLModel, BriVLProcessor
from modeling_r2d2.integrations.brivl import convert_brivl_checkpoint

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "brivl"
CASES = ("brivl_76", "brivl_120")


@cache
def meta(case: str) -> dict:
    return json.loads((GOLDEN / case / "meta.json").read_text(encoding="utf-8"))


@cache
def arrays(case: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / case / "golden.npz").items()}


@cache
def pairs(case: str) -> list[dict]:
    """{"image", "text", "boxes"}: the picture's path, what the authors read of its texts, boxes in its pixels."""
    found = []
    for line in (GOLDEN / case / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts = [text for kind, text in record["sentences"] if kind == "sur_text"]
        found.append({"image": GOLDEN / case / record["image_id"], "text": texts[0], "boxes": record["bbox"]})
    return found


def config(case: str, **changes) -> BriVLConfig:
    """The configuration that `meta.json` describes."""
    sizes, net, bert = meta(case)["sizes"], meta(case)["effnet"], meta(case)["sizes"]["bert"]

    def transformer(part: str) -> dict:
        return {
            "num_hidden_layers": sizes[f"{part}_layers"],
            "num_attention_heads": sizes[f"{part}_heads"],
            "intermediate_size": sizes[f"{part}_feedforward"],
        }

    vision = {
        "image_size": sizes["image_size"],
        "width_coefficient": net["width_coefficient"],
        "depth_coefficient": 1.0,
        "depth_divisor": net["depth_divisor"],
        "out_channels": net["arch_channels"],
        "in_channels": [32, *net["arch_channels"][:-1]],
        "num_block_repeats": net["repeats"],
        "hidden_dim": net["head"],
        "transformer_config": transformer("image"),
        "region_grid": sizes["grid_size"],
        "box_grid": meta(case)["nmi"]["box_grid"],
    }
    text = {**bert, "vocab_size": sizes["vocab_size"], "transformer_config": transformer("text")}
    settings = {
        "projection_dim": sizes["image_dim"],
        "max_text_length": sizes["max_text_length"],
        "temperature_init_value": sizes["temperature"],
    }
    return BriVLConfig(vision_config=vision, text_config=text, **{**settings, **changes})


def model(case: str, momentum: bool = False, attention: str = "sdpa", **changes) -> BriVLModel:
    """The case's checkpoint, converted."""
    found, _ = convert_brivl_checkpoint(
        GOLDEN / case / "checkpoint.pth", config(case, **changes), momentum=momentum, return_report=True
    )
    found.set_attn_implementation(attention)
    return found


def processor(case: str) -> BriVLProcessor:
    sizes = meta(case)["sizes"]
    tokenizer = BertTokenizer(vocab=str(GOLDEN / case / "vocab.txt"))
    return BriVLProcessor.build(
        tokenizer, sizes["image_size"], sizes["max_text_length"], sizes["max_boxes_with_the_whole_picture"],
        exif_transpose=False,
    )  # fmt: skip

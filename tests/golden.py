"""The authors' own results (tests/data/golden) as tensors, and their tiny models converted."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modeling_r2d2 import R2D2Config, R2D2Model
from modeling_r2d2.integrations import convert_official_checkpoint

GOLDEN = Path(__file__).parent / "data" / "golden"

#: Absolute tolerances of tests/data/golden/README.md.
ATOL, ATOL_SCALED, ATOL_GRADIENT = 1e-5, 2e-5, 1e-4


@cache
def meta(case: str) -> dict:
    return json.loads((GOLDEN / case / "meta.json").read_text(encoding="utf-8"))


@cache
def arrays(case: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / case / "golden.npz").items()}


def config(case: str) -> R2D2Config:
    """The configuration that `meta.json` describes: heads are not 64 wide here."""
    sizes = meta(case)["sizes"]
    vision, text, cross = (
        {
            "hidden_size": sizes[f"{width}_hidden_size"],
            "num_hidden_layers": sizes[f"{part}_layers"],
            "num_attention_heads": sizes[f"{part}_heads"],
            "intermediate_size": sizes[f"{part}_mlp"],
        }
        for part, width in (("vision", "vision"), ("text", "text"), ("cross", "text"))
    )
    return R2D2Config(
        vision_config={
            **vision,
            "image_size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
            "hidden_act": sizes["hidden_act_vision"],
            "layer_norm_eps": sizes["vision_layer_norm_eps"],
        },
        text_config={
            **text,
            "vocab_size": sizes["vocab_size"],
            "max_position_embeddings": sizes["text_max_position_embeddings"],
            "hidden_act": sizes["hidden_act_text"],
            "layer_norm_eps": sizes["text_layer_norm_eps"],
        },
        cross_encoder_config=cross if sizes["cross_layers"] else None,
        projection_dim=sizes["projection_dim"],
        temperature_init_value=sizes["temperature"],
    )


def model(case: str, attention: str = "sdpa") -> R2D2Model:
    """The converted checkpoint in evaluation mode, with the attention implementation `attention`."""
    converted = convert_official_checkpoint(GOLDEN / case / "checkpoint.pth", config(case))
    converted.set_attn_implementation(attention)
    return converted


def text_groups(case: str, trimmed: bool, prefix: str = "") -> list[dict[str, Tensor]]:
    """Texts as batches `{"rows", "input_ids", "attention_mask"}`: padded to 64, all in one; trimmed to the longest
    of the batch, those that fill all 64 positions in one of their own."""
    input_ids, mask = arrays(case)[f"{prefix}input_ids"], arrays(case)[f"{prefix}attention_mask"]
    lengths = mask.sum(dim=1)
    full = lengths == input_ids.shape[1]
    groups = []
    for rows in (full.logical_not().nonzero()[:, 0], full.nonzero()[:, 0]) if trimmed else (torch.arange(len(mask)),):
        if len(rows):
            longest = int(lengths[rows].max()) if trimmed else mask.shape[1]
            cut = {"input_ids": input_ids[rows, :longest], "attention_mask": mask[rows, :longest]}
            groups.append({"rows": rows, **cut})
    return groups


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    """Equal within an absolute tolerance."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    torch.testing.assert_close(actual.detach(), expected.to(actual.dtype), atol=atol, rtol=0)

"""Tiny Wukong models of random weights."""

import torch

from modeling_r2d2 import WukongConfig, WukongModel, WukongProcessor
from tests.helpers import tiny_processor
from tests.tiny import TOWERS

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
KINDS = {
    "clip": {},
    "filip": {"similarity": "token-wise"},
    "wukong": {"similarity": "token-wise", "token_reduction": 3},
}


def tiny_wukong_config(kind: str = "wukong", tower: str = "clip", **kwargs) -> WukongConfig:
    """Of 32-pixel images and texts of at most 16 tokens."""
    settings = {"projection_dim": 16, "max_text_length": 16, "similarity_chunk_size": 4, **KINDS[kind], **kwargs}
    return WukongConfig(vision_config=dict(TOWERS[tower]), text_config=dict(TEXT), **settings)


def tiny_wukong(kind: str = "wukong", tower: str = "clip", spread: float = 5.0, **kwargs) -> WukongModel:
    """In evaluation mode, its weights scaled by `spread`, so that random weights give scores that differ."""
    model = WukongModel(tiny_wukong_config(kind, tower, **kwargs)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(spread)
    return model


def tiny_wukong_processor() -> WukongProcessor:
    """Of the size of `tiny_wukong_config`."""
    return WukongProcessor.build(tiny_processor().tokenizer, image_size=32, max_length=16)


def tiny_wukong_batch(pairs: int = 6, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixels, and texts of all lengths from 1 to `length`, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(pairs) % length + 1
    attention_mask = (torch.arange(length) < lengths.flip(0)[:, None]).long()
    input_ids = torch.randint(5, TEXT["vocab_size"], (pairs, length), generator=generator) * attention_mask
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(pairs, 3, 32, 32, generator=generator),
    }

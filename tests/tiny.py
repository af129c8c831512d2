"""Tiny models of random weights that the tests share."""

import torch

from modeling_r2d2 import R2D2Config

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
CROSS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TOWERS = {
    "clip": {**VIT, "image_size": 32, "patch_size": 16},
    "vit": {"model_type": "vit", **VIT, "image_size": 32, "patch_size": 16},
    "dinov2": {
        "model_type": "dinov2",
        **{k: v for k, v in VIT.items() if k != "intermediate_size"},
        "image_size": 32,
        "patch_size": 16,
    },
    "siglip": {"model_type": "siglip_vision_model", **VIT, "image_size": 32, "patch_size": 16},
    "swin": {
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def tiny_config(tower: str = "clip", ranker: bool = True, dropout: float = 0.0, **kwargs) -> R2D2Config:
    """A configuration small enough for milliseconds; `dropout` applies to text tower and cross encoders."""
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return R2D2Config(
        vision_config=dict(TOWERS[tower]),
        text_config={**TEXT, **drop},
        cross_encoder_config={**CROSS, **drop} if ranker else None,
        projection_dim=16,
        **kwargs,
    )


def tiny_batch(pairs: int = 6, length: int = 9, image_size: int = 32, seed: int = 0, masked: bool = True) -> dict:
    """A batch as the collator makes it, with random pixels and tokens and some padding."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, TEXT["vocab_size"], (pairs, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1 % pairs, length - 3 :] = 0
    batch = {
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(pairs, 3, image_size, image_size, generator=generator),
        "image_ids": torch.arange(pairs),
    }
    if masked:
        batch["mlm_labels"] = torch.full_like(input_ids, -100)
        batch["mlm_labels"][:, 2] = batch["input_ids"][:, 2]
        batch["masked_input_ids"] = batch["input_ids"].clone()
        batch["masked_input_ids"][:, 2] = 4
    return batch

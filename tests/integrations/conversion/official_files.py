"""Checkpoints in the official format, made from models of this package."""

import torch
from torch import Tensor

from modeling_r2d2 import R2D2Config, R2D2Model
from modeling_r2d2.integrations.official_names import official_name

SIZES = {"num_hidden_layers": 2, "intermediate_size": 96}


def wide_config(ranker: bool = True, **kwargs) -> R2D2Config:
    """Small, but with the 64-wide heads of the official sizes: 64 and 128 wide."""
    text = {**SIZES, "hidden_size": 64, "num_attention_heads": 1}
    return R2D2Config(
        vision_config={
            **SIZES,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
        },
        text_config={**text, "vocab_size": 50, "max_position_embeddings": 20},
        cross_encoder_config={**text, "num_hidden_layers": 1} if ranker else None,
        projection_dim=12,
        **kwargs,
    )


def official_tensors(model: R2D2Model) -> dict[str, Tensor]:
    """The model's tensors under the official names, and the unused ones that an official file has besides."""
    tensors = {
        official_name(name): tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("mlm_head.")
    }
    text, vision = model.config.text_config, model.config.vision_config
    encoders = ["text_encoder", *(["text_joint_layer", "img_joint_layer"] if model.can_rank else [])]
    for encoder in encoders:
        tensors[f"{encoder}.embeddings.position_ids"] = torch.arange(text.max_position_embeddings)[None]
    for encoder in encoders[1:]:
        for name in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
            tensors[f"{encoder}.embeddings.{name}"] = tensors[f"text_encoder.embeddings.{name}"].clone()
    for kind in ("weight", "bias"):
        tensors[f"visual_encoder.post_layernorm.{kind}"] = torch.ones(vision.hidden_size)
    tensors["visual_encoder.embeddings.position_ids"] = torch.arange((vision.image_size // vision.patch_size) ** 2 + 1)
    tensors["text_encoder.pooler.dense.weight"] = torch.ones(text.hidden_size, text.hidden_size)
    tensors["text_encoder.pooler.dense.bias"] = torch.ones(text.hidden_size)
    return tensors


def head_tensors(config: R2D2Config, prefix: str = "text_joint_layer.cls.predictions.") -> dict[str, Tensor]:
    """A language-model head named as in BERT."""
    width, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
    bias = torch.randn(vocabulary)
    parts = {
        "bias": bias,
        "transform.dense.weight": torch.randn(width, width),
        "transform.dense.bias": torch.randn(width),
        "transform.LayerNorm.weight": torch.randn(width),
        "transform.LayerNorm.bias": torch.randn(width),
        "decoder.weight": torch.randn(vocabulary, width),
        "decoder.bias": bias.clone(),
    }
    return {prefix + name: tensor for name, tensor in parts.items()}


def training_leftovers() -> dict[str, Tensor]:
    """What a pre-training file may carry besides."""
    return {
        "image_queue": torch.randn(12, 30),
        "text_queue": torch.randn(12, 30),
        "idx_queue": torch.zeros(1, 30, dtype=torch.long),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "visual_encoder_m.embeddings.class_embedding": torch.randn(128),
        "text_encoder_m.embeddings.position_ids": torch.arange(20)[None],
        "text_encoder_m.pooler.dense.bias": torch.randn(64),
        "vision_proj_m.weight": torch.randn(12, 128),
    }

"""Official sizes by name: arguments of `R2D2Config`, `WukongConfig` and `BriVLConfig`. Imports nothing, so that names
cost nothing."""

from typing import Any

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_VIT_B_16 = {**_BASE, "patch_size": 16, "image_size": 224}
_VIT_L_14 = {**_LARGE, "patch_size": 14, "image_size": 224}

PRESETS: dict[str, dict[str, Any]] = {
    "r2d2-vit-b-16": {"vision_config": _VIT_B_16},
    "r2d2-vit-l-14": {"vision_config": _VIT_L_14},
    "r2d2-vit-l-14-336": {"vision_config": {**_VIT_L_14, "image_size": 336}},
    "prd2-vit-b-16": {"vision_config": _VIT_B_16, "cross_encoder_config": None},
    "prd2-vit-l-14": {"vision_config": _VIT_L_14, "cross_encoder_config": None},
}


def _wukong() -> dict[str, dict[str, Any]]:
    vit = {"model_type": "clip_vision_model", "image_size": 224}
    swin = {"model_type": "swin", "image_size": 224, "patch_size": 4, "window_size": 7}
    small = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    # image tower, text tower, width of the global embedding, reduced tokens
    towers = {
        "vit-b-32": ({**vit, **_BASE, "patch_size": 32}, small, 512, 12),
        "vit-l-14": ({**vit, **_LARGE, "patch_size": 14}, _BASE, 768, 24),
        "swin-l": (
            {**swin, "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
            _BASE,
            768,
            12,
        ),
        "swin-t": ({**swin, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}, small, 512, 12),
    }
    presets: dict[str, dict[str, Any]] = {}
    for tower, (vision, text, width, reduced) in towers.items():
        both = {"vision_config": vision, "text_config": text}
        token_wise = {**both, "similarity": "token-wise", "projection_dim": 256}
        presets[f"wukong-{tower}-clip"] = {**both, "projection_dim": width}
        presets[f"wukong-{tower}-filip"] = token_wise
        presets[f"wukong-{tower}-wukong"] = {**token_wise, "token_reduction": reduced}
    return presets


WUKONG_PRESETS = _wukong()

#: The authors' program of 2021 (380 px), and that of 2022 for the same weights (456 px).
BRIVL_PRESETS: dict[str, dict[str, Any]] = {
    f"brivl-b5-{size}": {"vision_config": {"image_size": size}} for size in (380, 456)
}

__all__ = ["BRIVL_PRESETS", "PRESETS", "WUKONG_PRESETS"]

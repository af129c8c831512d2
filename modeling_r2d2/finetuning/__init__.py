"""Fine-tuning: retrieval, matching, captions and classification; presets, LoRA and DoRA, early stopping."""

from .adapters import add_adapters, load_adapter, merge_adapter, save_adapter
from .run import build_trainer, finetune, load_for, split_validation
from .settings import FinetuningSettings, LoRASettings

__all__ = [
    "FinetuningSettings",
    "LoRASettings",
    "add_adapters",
    "build_trainer",
    "finetune",
    "load_adapter",
    "load_for",
    "merge_adapter",
    "save_adapter",
    "split_validation",
]

"""Fine-tuning: retrieval, matching, captions and classification; presets, LoRA and DoRA, early stopping."""

from ..processing.files.lazy import lazy_names

_NAMES = {
    "adapters": ["add_adapters", "load_adapter", "merge_adapter", "save_adapter"],
    "run": ["build_trainer", "finetune", "load_for", "split_validation"],
    "settings": ["FinetuningSettings", "LoRASettings"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)

"""Training and evaluation of `R2D2TextToImagePipeline` (extras `[diffusers]` and `[train]`)."""

from importlib import import_module
from typing import Any

_NAMES = {
    "components": ["adapt_pretrained", "merge_lora", "plain_text_encoder"],
    "data": ["CaptionFeatures", "CaptionedImages"],
    "demo": ["DemoSettings", "demo_pipeline", "run_demo"],
    "evaluation": ["GeneratedResult", "evaluate_generated", "feature_kid", "generate"],
    "objective": ["diffusion_loss", "min_snr_weights"],
    "sheet": ["sample_sheet"],
    "settings": ["TextToImageSettings"],
    "training": ["train_text_to_image"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

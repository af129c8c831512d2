"""What lies between files and the model: the processor, augmentation, masking, collation and data readers.

Names are imported when they are first used, so importing this package costs nothing.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "augmentation": ["R2D2Augmentation"],
    "batch_augmentation": ["BatchAugmentation"],
    "collation": ["PretrainingDataset", "R2D2PretrainingCollator", "StreamingPretrainingDataset"],
    "datasets.emoji": ["EmojiPairs"],
    "files.images": ["ImageReadError", "open_image"],
    "datasets.loading": ["load_pairs"],
    "datasets.pairs": ["PairDataset"],
    "datasets.records": ["stable_id", "stable_ids"],
    "datasets.report": ["DataRefusedError", "ErrorReport", "Problem"],
    "datasets.streaming": ["StreamingPairs"],
    "masking": ["TextMasking", "mask_tokens"],
    "tokenization": ["build_character_tokenizer"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

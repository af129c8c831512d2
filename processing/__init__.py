"""What lies between files and the model: the processor, augmentation, masking, collation and data readers.

Names are imported when they are first used, so importing this package costs nothing.
"""

from .files.lazy import lazy_names

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
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)

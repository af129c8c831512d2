"""Weights from elsewhere: official R2D2 and PRD2 checkpoints, and warm starts from CLIP and RoBERTa."""

from .folder import build_tokenizer, convert_to_folder, find_vocabulary
from .official import (
    CheckpointError,
    ConversionReport,
    convert_official_checkpoint,
    convert_state_dict,
    infer_config,
    read_checkpoint,
)
from .warm_start import from_vision_text_pretrained

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "build_tokenizer",
    "convert_official_checkpoint",
    "convert_state_dict",
    "convert_to_folder",
    "find_vocabulary",
    "from_vision_text_pretrained",
    "infer_config",
    "read_checkpoint",
]

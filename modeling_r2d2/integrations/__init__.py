"""Weights from and for elsewhere: official checkpoints, Wukong, warm starts, ONNX, sentence-transformers."""

from .checkpoints import CheckpointError, ConversionReport, read_checkpoint
from .dual_encoder import convert_dual_encoder_to_folder
from .official import convert_official_checkpoint, convert_state_dict, infer_config
from .official_folder import build_tokenizer, convert_to_folder, find_vocabulary
from .warm_start import from_vision_text_pretrained

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "build_tokenizer",
    "convert_dual_encoder_to_folder",
    "convert_official_checkpoint",
    "convert_state_dict",
    "convert_to_folder",
    "find_vocabulary",
    "from_vision_text_pretrained",
    "infer_config",
    "read_checkpoint",
]

"""The main job on the demo set: pre-train a small R2D2 on emoji pictures and their Chinese names, and show it.

The recipe (tower, sizes, learning rate, augmentation, texts) was chosen with the Samsung pictures held out;
Twitter and Windows are test vendors and were never tuned on.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from ..configuration_r2d2 import R2D2Config
from ..evaluation import RetrievalResult, evaluate_retrieval
from ..pretraining_r2d2 import R2D2ForPreTraining
from ..processing.augmentation import DemoAugmentation
from ..processing.datasets.emoji import EmojiPairs
from ..processing.processing_r2d2 import R2D2Processor
from ..processing.tokenization import build_character_tokenizer
from .pretraining import PretrainingSettings, build_trainer, count_parameters, refuse_existing_model

TRAINING_VENDORS = ("apple", "facebook", "google", "joypixels", "samsung")
TEST_VENDORS = ("twitter", "windows")
IMAGE_SIZE = 40
MAX_TEXT_LENGTH = 32


@dataclass
class DemoSettings:
    """What `r2d2 demo` takes; `held_out` vendors replace the test vendors for choosing a recipe.

    candidates: pairs per query that the ranker sees, as in the two-stage search of the paper.
    """

    output: Path = Path("runs/demo")
    steps: int = 1800
    batch_size: int = 150
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    candidates: int = 32
    seed: int = 0
    workers: int = 1
    held_out: tuple[str, ...] = TEST_VENDORS
    overwrite: bool = False


def demo_config(vocab_size: int) -> R2D2Config:
    """A 1.9 M-parameter R2D2: a small ResNet, which learns from scratch where a small ViT does not."""
    width = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    return R2D2Config(
        vision_config={
            "model_type": "resnet",
            "embedding_size": 32,
            "hidden_sizes": [64, 128, 256],
            "depths": [1, 1, 1],
            "layer_type": "basic",
        },
        text_config={
            **width,
            "vocab_size": vocab_size,
            "num_hidden_layers": 1,
            "max_position_embeddings": MAX_TEXT_LENGTH,
        },
        cross_encoder_config={**width, "num_hidden_layers": 2},
        projection_dim=128,
        max_text_length=MAX_TEXT_LENGTH,
    )

"""Training with transformers' Trainer."""

from .arguments import R2D2TrainingArguments
from .trainer import R2D2Trainer

__all__ = ["R2D2Trainer", "R2D2TrainingArguments"]

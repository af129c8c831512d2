"""Training with transformers' Trainer."""

from ..jobs.divergence import DivergenceCallback
from .arguments import R2D2TrainingArguments
from .trainer import R2D2Trainer

__all__ = ["DivergenceCallback", "R2D2Trainer", "R2D2TrainingArguments"]

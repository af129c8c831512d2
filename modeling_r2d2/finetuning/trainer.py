"""R2D2Trainer with parameter groups, the authors' schedules, frozen parts at rest and adapters that resume exactly."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..training.trainer import R2D2Trainer
from .adapters import load_extra_weights, save_extra_weights
from .data import FinetuningDataset
from .parameters import frozen_modules, parameter_groups
from .schedules import factor, matching_rate, retrieval_rate
from .settings import FinetuningSettings


class FinetuningTrainer(R2D2Trainer):
    """The trainer of every fine-tuning task.

    Beyond `R2D2Trainer`: parameter groups by pattern; the authors' schedules; frozen modules stay in evaluation mode
    (no dropout, batch norms at rest); parameters that train beside adapters are saved and resumed with them.

    Args:
        settings: of the run.
        steps_per_epoch: optimiser steps in a pass over the data.
    """

    train_dataset: FinetuningDataset

    def __init__(self, *args: Any, settings: FinetuningSettings, steps_per_epoch: int, **kwargs: Any):
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        super().__init__(*args, **kwargs)
        self._frozen = frozen_modules(self.model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW (or what `arguments` name) over the groups of `parameter_groups`."""
        if self.optimizer is None:
            chosen = self.model if model is None else model
            settings = self.settings
            groups = parameter_groups(
                chosen, settings.learning_rate, settings.weight_decay, settings.decay, settings.rates
            )
            for group in groups:
                del group["names"]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The authors' schedule where one was chosen, a scheduler of transformers otherwise."""
        settings = self.settings
        if settings.lr_scheduler_type == "retrieval":
            rate = partial(
                retrieval_rate,
                epochs=settings.num_train_epochs,
                steps_per_epoch=self.steps_per_epoch,
                warmup_steps=settings.warmup_of(settings.num_train_epochs * self.steps_per_epoch),
                start=settings.warmup_rate,
            )
        elif settings.lr_scheduler_type == "matching":
            rate = partial(matching_rate, half_period=int(settings.warmup_steps))
        else:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None  # made before its schedule
            self.lr_scheduler = LambdaLR(chosen, factor(rate, settings.learning_rate))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in R2D2Trainer, frozen modules being put to rest after `model.train()`."""
        if model.training:
            for module in self._frozen:
                module.eval()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def _adapted(self) -> bool:
        return hasattr(self.model, "peft_config")

    def _save_beside(self, folder: Path) -> None:
        if self._adapted:
            adapted: Any = self.model  # a PeftModel
            save_extra_weights(adapted, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._adapted:
            load_extra_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._adapted and self.state.best_model_checkpoint is not None:
            load_extra_weights(self.model, self.state.best_model_checkpoint)


__all__ = ["FinetuningTrainer"]

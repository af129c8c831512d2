"""Means of named scalars between two logs."""

from collections.abc import Mapping
from typing import Any

import torch

#: Scalars of R2D2ForPreTrainingOutput that are logged beside the total loss.
LOGGED_PARTS = ("loss_gcpr", "loss_tgd", "loss_fgr", "loss_mlm", "loss_fgd", "ranking_accuracy", "temperature")


class RunningMeans:
    """Running means on the device, read (and so synchronised) only when they are logged."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Any], names: tuple[str, ...] = LOGGED_PARTS):
        """Count in those of the named scalars that are there."""
        for name in names:
            if (value := values.get(name)) is not None:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
                self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

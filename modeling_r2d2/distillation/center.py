"""The centre of what the teacher compares by, which keeps feature-guided distillation from collapsing."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.distributed_r2d2 import world_size


class FeatureCenter(nn.Module):
    """Moving means of the teacher's cosines of images and of texts over all workers: μ ← m μ + (1 − m) mean(z_t).

    Micro-batches of one optimizer step are collected by `collect` and enter together by `commit`, so that gradient
    accumulation gives the centre of the whole batch.

    Attributes:
        images: (K,) float32.
        texts: (K,) float32; 0 before the first step, as in DINO.
    """

    def __init__(self, width: int, momentum: float = 0.9, device: torch.device | None = None):
        super().__init__()
        self.momentum = momentum
        self.images = nn.Buffer(torch.zeros(width, device=device))
        self.texts = nn.Buffer(torch.zeros(width, device=device))
        # sums of both modalities, and the number of pairs
        self._sums = torch.zeros(2 * width + 1, device=device)

    def collect(self, images: Tensor, texts: Tensor):
        """Add the teacher's features (B, K) of local images and texts to the batch of this step."""
        rows = images.new_tensor([len(images)], dtype=torch.float32)
        self._sums += torch.cat([images.float().sum(dim=0), texts.float().sum(dim=0), rows])

    def commit(self):
        """End of an optimizer step: the mean over all workers enters the centre."""
        if world_size() > 1:
            dist.all_reduce(self._sums)
        images, texts, rows = self._sums.split([len(self.images), len(self.texts), 1])
        for center, total in ((self.images, images), (self.texts, texts)):
            center.lerp_(torch.where(rows > 0, total / rows.clamp_min(1), center), 1 - self.momentum)
        self.discard()

    def discard(self):
        """Forget what was collected."""
        self._sums.zero_()

    def measures(self) -> dict[str, float]:
        """`centre_norm`: the mean L2 norm of both centres."""
        return {"center_norm": float(self.images.norm() + self.texts.norm()) / 2}

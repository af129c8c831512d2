"""The heads that feature-guided distillation compares by, as DINO's (arXiv 2104.14294): they train with the towers, and
nothing but that objective reads them.

R2D2's paper names no head. Without one the retrieval embedding itself would be compared, whose features are unbounded:
their softmax is nearly one-hot, and its gradient swamps every other objective's. A head is this project's choice.
This file travels to the Hub beside the weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .two_towers_r2d2 import normalize

#: DINO's widths of the hidden layers and the bottleneck, for towers that are wide enough for them.
_HIDDEN, _BOTTLENECK = 2048, 256


def bottleneck_size(config: Any) -> int:
    """d of an `R2D2Config`'s heads: what it states, or the width of its narrower tower, at most DINO's 256."""
    widths = config.vision_hidden_size, config.text_hidden_size
    return config.fgd_bottleneck_size or min(_BOTTLENECK, *widths)


class R2D2FeatureHead(nn.Module):
    """Three layers to a bottleneck, whose direction is compared with K prototypes.

    z_k = ⟨u/‖u‖, w_k/‖w_k‖⟩, u = W₃ gelu(W₂ gelu(W₁ f + b₁) + b₂) + b₃: features (B, D) to cosines (B, K) in float32,
    within [−1, 1]. DINO's last layer is the same: weight-normalised, its magnitude fixed at 1.
    """

    def __init__(self, width: int, hidden_size: int, bottleneck_size: int, prototypes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, bottleneck_size),
        )
        self.prototypes = nn.Linear(bottleneck_size, prototypes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        points = normalize(self.layers(features).float())
        directions = normalize(self.prototypes.weight.float())
        with torch.autocast(points.device.type, enabled=False):
            return points @ directions.t()


class R2D2FeatureHeads(nn.Module):
    """A head for images and one for texts, of the sizes that the configuration states (`fgd_prototypes`, …) or, where
    it states none, of DINO's as far as the towers are wide enough for them.

    Args:
        config: an `R2D2Config` whose `fgd_prototypes` is not 0.

    Raises:
        ValueError: a text tower for which neither its first state nor the mean of its states stands.
    """

    def __init__(self, config: Any):
        super().__init__()
        if config.text_pooling not in ("cls", "mean"):
            raise ValueError(
                "feature-guided distillation compares the first token or the mean of a text's states, and this model "
                f"reads its {config.text_pooling!r}: leave it out"
            )
        widths = config.vision_hidden_size, config.text_hidden_size
        ends = bottleneck_size(config), config.fgd_prototypes
        self.image, self.text = (
            R2D2FeatureHead(width, config.fgd_hidden_size or min(_HIDDEN, 4 * width), *ends) for width in widths
        )


__all__ = ["R2D2FeatureHead", "R2D2FeatureHeads", "bottleneck_size"]

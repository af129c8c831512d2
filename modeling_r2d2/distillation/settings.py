"""What the distillation callbacks take."""

from dataclasses import dataclass
from typing import Literal

from ..distillation_losses_r2d2 import ReliabilityPlacement


@dataclass(frozen=True)
class TargetGuidedSettings:
    """Target-guided distillation (TgD).

    Args:
        queue_size: earlier pairs whose teacher features are candidates beside the batch's. 65,536 at scale (ALBEF;
            the paper publishes none); keep it below the size of a small data set.
        alpha: weight of the teacher's softmax in the targets.
        alpha_ramp_steps: optimizer steps over which alpha grows from 0; None: one pass over the data.
        reliability_decay: what a queue entry's weight is multiplied by at every step (0.99 in the paper).
        reliability: where that weight enters, see `soft_targets` (the paper does not say).

    Raises:
        ValueError: a value out of its range.
    """

    queue_size: int = 65536
    alpha: float = 0.4
    alpha_ramp_steps: int | None = None
    reliability_decay: float = 0.99
    reliability: ReliabilityPlacement = "loss"

    def __post_init__(self):
        if self.queue_size < 0:
            raise ValueError(f"queue_size must not be negative, got {self.queue_size}")
        for name, value in (("alpha", self.alpha), ("reliability_decay", self.reliability_decay)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be within [0, 1], got {value}")
        if self.reliability not in ("loss", "logits"):
            raise ValueError(f"reliability enters in 'loss' or 'logits', not in {self.reliability!r}")
        if self.reliability == "logits" and self.reliability_decay == 0:
            raise ValueError("a reliability of 0 has no logarithm: reliability='logits' needs a decay above 0")


@dataclass(frozen=True)
class FeatureGuidedSettings:
    """Feature-guided distillation (FgD).

    Args:
        student_temperature, teacher_temperature: τ_s and τ_t. centre_momentum: of the moving mean μ (all as DINO).
        feature: "projection", the projected [CLS] before the L2 norm (after it the softmax is nearly flat), or
            "tower", the tower's own [CLS] (the mean of its tokens where pre-ranking reads that).
        image_drop: share of a ViT's patches that the student does not see; in other towers of blocks of pixels.
        block: side of those blocks in pixels.

    Raises:
        ValueError: a value out of its range.
    """

    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    feature: Literal["projection", "tower"] = "projection"
    image_drop: float = 0.5
    block: int = 32

    def __post_init__(self):
        if min(self.student_temperature, self.teacher_temperature) <= 0:
            raise ValueError("the temperatures of feature-guided distillation must be above 0")
        if not 0 <= self.centre_momentum <= 1:
            raise ValueError(f"centre_momentum must be within [0, 1], got {self.centre_momentum}")
        if not 0 <= self.image_drop < 1:
            raise ValueError(f"image_drop must be within [0, 1), got {self.image_drop}")
        if self.block < 1:
            raise ValueError(f"block is a side in pixels, got {self.block}")
        if self.feature not in ("projection", "tower"):
            raise ValueError(f"feature must be 'projection' or 'tower', got {self.feature!r}")

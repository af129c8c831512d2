"""What the distillation callbacks take."""

from dataclasses import dataclass
from typing import Literal

from ..model.distillation_losses_r2d2 import ReliabilityPlacement
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, POSITIVE, SHARE, require_number, require_numbers


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
        sizes = {"queue_size": COUNT_OR_NONE, "alpha_ramp_steps": COUNT_OR_NONE}
        require_numbers(self, {**sizes, "alpha": SHARE, "reliability_decay": SHARE})
        if self.reliability not in ("loss", "logits"):
            raise ValueError(f"reliability enters in 'loss' or 'logits', not in {self.reliability!r}")
        if self.reliability == "logits" and self.reliability_decay == 0:
            raise ValueError("a reliability of 0 has no logarithm: reliability='logits' needs a decay above 0")


@dataclass(frozen=True)
class FeatureGuidedSettings:
    """Feature-guided distillation (FgD).

    Args:
        student_temperature: τ_s, as DINO.
        teacher_temperature: τ_t, as DINO.
        center_momentum: of the moving mean μ, as DINO.
        feature: "projection", the projected [CLS] before the L2 norm (after it the softmax is nearly flat), or
            "tower", the tower's own [CLS] (the mean of its tokens where pre-ranking reads that).
        image_drop: share of a ViT's patches that the student does not see; in other towers of blocks of pixels.
        block: side of those blocks in pixels.

    Raises:
        ValueError: a value out of its range.
    """

    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    center_momentum: float = 0.9
    feature: Literal["projection", "tower"] = "projection"
    image_drop: float = 0.5
    block: int = 32

    def __post_init__(self):
        require_numbers(self, {"student_temperature": POSITIVE, "teacher_temperature": POSITIVE})
        require_numbers(self, {"center_momentum": SHARE, "block": COUNT})
        require_number("image_drop", self.image_drop, least=0, below=1)
        if self.feature not in ("projection", "tower"):
            raise ValueError(f"feature must be 'projection' or 'tower', got {self.feature!r}")

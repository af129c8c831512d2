"""What the distillation callbacks take."""

from dataclasses import dataclass

from ..model.distillation_losses_r2d2 import ReliabilityPlacement, feature_temperatures
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, PART, POSITIVE, SHARE, require_number, require_numbers
from .schedules import Schedule

#: As ALBEF's; the paper publishes none.
LARGEST_QUEUE = 65536


@dataclass(frozen=True)
class TargetGuidedSettings:
    """Target-guided distillation (TgD).

    Args:
        queue_size: earlier pairs whose teacher features are candidates beside the batch's; None: by the size of the
            data, see `queue_of`.
        alpha: weight of the teacher's softmax in the targets (0.4 as ALBEF's; the paper publishes none).
        alpha_ramp: the shares of the run between which it grows from 0 (ours: until a tenth of the run there is little
            to learn from the teacher; ALBEF ramps over its first pass).
        reliability_decay: what a queue entry's weight is multiplied by at every step (0.99 in the paper).
        reliability: where that weight enters, see `soft_targets` (the paper does not say).

    Raises:
        ValueError: a value out of its range.
    """

    queue_size: int | None = None
    alpha: float = 0.4
    alpha_ramp: tuple[float, float] = (0.1, 0.4)
    reliability_decay: float = 0.99
    reliability: ReliabilityPlacement = "loss"

    def __post_init__(self):
        require_numbers(self, {"queue_size": COUNT_OR_NONE, "alpha": SHARE, "reliability_decay": SHARE})
        for share in self.alpha_ramp:
            require_number("alpha_ramp", share, **SHARE)
        if len(self.alpha_ramp) != 2 or self.alpha_ramp[0] > self.alpha_ramp[1]:
            raise ValueError(
                f"alpha_ramp is {self.alpha_ramp!r}; it is two shares of the run: where alpha begins to grow, and "
                "where it stops"
            )
        if self.reliability not in ("loss", "logits"):
            raise ValueError(f"reliability enters in 'loss' or 'logits', not in {self.reliability!r}")
        if self.reliability == "logits" and self.reliability_decay == 0:
            raise ValueError("a reliability of 0 has no logarithm: reliability='logits' needs a decay above 0")

    def queue_of(self, pairs: int | None, batch: int) -> int:
        """The size of the queue: `queue_size`, or else a twentieth of the data, 65,536 at most, and none where that is
        less than the batch.

        A pair that comes back soon is in the batches anyway, and its queued features are the older ones. MoCo's 65,536
        are a twentieth of ImageNet and ALBEF's 65,536 less of its pairs; where to go below that is this project's
        choice, the paper publishes no size at all.

        Args:
            pairs: of the data; None: a stream, whose number is not known: 65,536.
            batch: pairs of all workers that enter at once.
        """
        if self.queue_size is not None:
            return self.queue_size
        size = LARGEST_QUEUE if pairs is None else min(LARGEST_QUEUE, pairs // 20)
        return size if size >= batch else 0

    def alpha_schedule(self, max_steps: int) -> Schedule:
        """alpha as a function of the global step, in a run of so many steps."""
        begin, end = (round(share * max_steps) for share in self.alpha_ramp)
        return Schedule(0.0, self.alpha, end - begin, begin=begin)


@dataclass(frozen=True)
class FeatureGuidedSettings:
    """Feature-guided distillation (FgD), by the heads of the model; their sizes are in its configuration
    (`fgd_prototypes`, …).

    Args:
        student_temperature: τ_s; None: by the width of the heads, see `feature_temperatures`.
        teacher_temperature: τ_t; None: by the width of the heads, see `feature_temperatures`.
        center_momentum: of the moving mean μ, as DINO.
        image_drop: share of a ViT's patches that the student does not see; in other towers of blocks of pixels.
        block: side of those blocks in pixels.

    Raises:
        ValueError: a value out of its range.
    """

    student_temperature: float | None = None
    teacher_temperature: float | None = None
    center_momentum: float = 0.9
    image_drop: float = 0.5
    block: int = 32

    def __post_init__(self):
        require_numbers(self, {"student_temperature": POSITIVE, "teacher_temperature": POSITIVE})
        require_numbers(self, {"center_momentum": SHARE, "block": COUNT})
        require_number("image_drop", self.image_drop, **PART)

    def temperatures(self, width: int) -> tuple[float, float]:
        """τ_s and τ_t for heads of that width."""
        student, teacher = feature_temperatures(width)
        return self.student_temperature or student, self.teacher_temperature or teacher

"""Recipes: which objectives a pre-training run has, as small overrides of one default, the full R2D2."""

from dataclasses import dataclass, field, replace

from ..distillation import FeatureGuidedSettings, Schedule, TargetGuidedSettings
from ..distillation.callbacks import DistillationCallback


@dataclass(frozen=True)
class Recipe:
    """What to train with (arXiv 2205.03860); the defaults are R2D2's.

    Args:
        ranker: FGR on the cross encoders. masking: masked texts, for MLM (with a ranker) and FgD.
        target_guided, feature_guided: settings of the two ways of distillation; None: without.
        momentum: of their teacher.
    """

    ranker: bool = True
    masking: bool = True
    target_guided: TargetGuidedSettings | None = field(default_factory=TargetGuidedSettings)
    feature_guided: FeatureGuidedSettings | None = field(default_factory=FeatureGuidedSettings)
    momentum: float | Schedule = 0.995

    def __post_init__(self):
        if self.feature_guided is not None and not self.masking:
            raise ValueError("feature-guided distillation compares masked texts: a recipe with it needs masking")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.target_guided is not None or self.feature_guided is not None

    def callbacks(self) -> list[DistillationCallback]:
        """What the Trainer needs beside the model: one callback, or none."""
        return [DistillationCallback(self.target_guided, self.feature_guided, self.momentum)] if self.distils else []

    def fitted(self, pairs: int) -> "Recipe":
        """With a queue of at most half of the data: entries of pairs that are about to come back teach little."""
        if self.target_guided is None or self.target_guided.queue_size <= pairs // 2:
            return self
        return replace(self, target_guided=replace(self.target_guided, queue_size=pairs // 2))


#: What `r2d2 pretrain --recipe` takes.
RECIPES: dict[str, Recipe] = {
    "r2d2": Recipe(),
    "prd2": Recipe(ranker=False),
    "clip": Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None),
}

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

    def adapted(
        self,
        pairs: int | None,
        distil: bool = True,
        masking: bool = True,
        queue_size: int | None = None,
        alpha: float = 0.4,
        alpha_ramp_steps: int | None = None,
        momentum: float | None = None,
    ) -> "Recipe":
        """This recipe for a set of so many pairs (None: a stream), as the command line asks for it.

        Without `queue_size` the queue holds at most half of the data: a pair that is about to come back teaches
        little from there. Without masked texts there is no FgD.
        """
        targets = self.target_guided if distil else None
        if targets is not None:
            size = queue_size if queue_size is not None else min(targets.queue_size, pairs // 2 if pairs else 65536)
            targets = replace(targets, queue_size=size, alpha=alpha, alpha_ramp_steps=alpha_ramp_steps)
        features = self.feature_guided if distil and masking else None
        return replace(
            self,
            masking=self.masking and masking,
            target_guided=targets,
            feature_guided=features,
            momentum=self.momentum if momentum is None else momentum,
        )

    def __str__(self) -> str:
        parts = ["TgD" if self.target_guided else "GCPR", *["FGR"] * self.ranker]
        parts += ["MLM"] * (self.ranker and self.masking) + ["FgD"] * (self.feature_guided is not None)
        return " + ".join(parts)


#: What `r2d2 pretrain --recipe` takes.
RECIPES: dict[str, Recipe] = {
    "r2d2": Recipe(),
    "prd2": Recipe(ranker=False),
    "clip": Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None),
}


def find_recipe(name: str) -> Recipe:
    """By name.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]

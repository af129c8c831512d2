"""Recipes: which objectives a pre-training run has, as small overrides of one default, R2D2; and the systems beside
R2D2, each trained by the same trainer."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn
from transformers import TrainerCallback

from ..distillation import (
    DualQueueContrastiveCallback,
    DualQueueSettings,
    FeatureGuidedSettings,
    Schedule,
    TargetGuidedSettings,
)
from ..distillation.callbacks import DistillationCallback
from ..distillation.schedules import require_momentum
from ..model.configuration_brivl import BriVLConfig
from ..model.configuration_wukong import WukongConfig
from ..model.ranges_r2d2 import PART, require_number
from .curriculum import RankingCurriculumCallback

#: How a model compares pictures and texts, in the words of error messages.
_COMPARES = {
    "global": "one vector per picture and text",
    "token-wise": "token by token",
    "reduced": "token by token, with reduced image tokens",
}


@dataclass(frozen=True)
class Recipe:
    """What to train with (arXiv 2205.03860); the defaults are the paper's R2D2 but FgD. What `r2d2` trains with is in
    `RECIPES`.

    Args:
        ranker: FGR on the cross encoders.
        masking: masked texts, for MLM (with a ranker) and FgD.
        target_guided: settings of the two ways of distillation; None: without.
        feature_guided: settings of the two ways of distillation; None, the default: without. (The paper has both;
            this project's default waits until FgD wins in a comparison.)
        momentum: of their teacher, see `DistillationCallback`.
        rank_from: the share of the run before ranking begins, see `RankingCurriculumCallback`.
        negative_ramp: the share of the rest over which its negatives become hard.

    Raises:
        ValueError: feature-guided distillation without masked texts, a momentum or a share out of its range, ranking
            that begins later, or negatives that become hard, on a recipe without a ranker.
    """

    ranker: bool = True
    masking: bool = True
    target_guided: TargetGuidedSettings | None = field(default_factory=TargetGuidedSettings)
    feature_guided: FeatureGuidedSettings | None = None
    momentum: float | Schedule = 0.995
    rank_from: float = 0.0
    negative_ramp: float = 0.0

    compares: ClassVar[str] = "global"
    may_distil: ClassVar[bool] = True

    def __post_init__(self):
        require_momentum(self.momentum)
        require_number("rank_from", self.rank_from, **PART)
        require_number("negative_ramp", self.negative_ramp, **PART)
        if self.rank_from and not self.ranker:
            raise ValueError(f"rank_from is {self.rank_from}, but the recipe has no ranking that could begin later")
        if self.negative_ramp and not self.ranker:
            raise ValueError(
                f"negative_ramp is {self.negative_ramp}, but the recipe has no ranking, whose negatives it is of"
            )
        if self.feature_guided is not None and not self.masking:
            raise ValueError("feature-guided distillation compares masked texts: a recipe with it needs masking")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.target_guided is not None or self.feature_guided is not None

    @property
    def reads_masked_texts(self) -> bool:
        """Whether an objective does: MLM, which needs the ranker, or FgD."""
        return self.masking and (self.ranker or self.feature_guided is not None)

    def check(self, model: nn.Module):
        """That these objectives can train a model.

        Raises:
            ValueError: a recipe that ranks on a model without ranker, or the other way round; one that compares
                otherwise than the model; distillation of a Wukong.
        """
        if self.ranker != model.can_rank:
            raise ValueError(
                f"the recipe {'has' if self.ranker else 'has no'} ranking but the model "
                f"{'has no' if self.ranker else 'has a'} ranker (cross_encoder_config)"
            )
        compares = _compares(model)
        if compares != self.compares:
            raise ValueError(
                f"the recipe compares {_COMPARES[self.compares]}, the model {_COMPARES[compares]}: start from a preset "
                "of the recipe's kind (wukong-vit-b-32-filip for filip, wukong-vit-b-32-wukong for wukong) or train "
                f"with the recipe {recipe_for(model)}"
            )
        if isinstance(model.config, WukongConfig) and (self.target_guided or self.feature_guided):
            raise ValueError(
                "two-way distillation trains R2D2ForPreTraining, not Wukong's towers: train them with the recipe "
                f"{recipe_for(model)}, or brivl where the similarity is global"
            )

    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer needs beside the model."""
        found: list[TrainerCallback] = []
        if self.rank_from or self.negative_ramp:
            found.append(RankingCurriculumCallback(self.rank_from, self.negative_ramp))
        if self.distils:
            found.append(DistillationCallback(self.target_guided, self.feature_guided, self.momentum))
        return found

    def adapted(
        self,
        pairs: int | None,
        distil: bool | None = None,
        masking: bool | None = None,
        queue_size: int | None = None,
        alpha: float | None = None,
        momentum: float | None = None,
        rank_from: float | None = None,
        negative_ramp: float | None = None,
        feature_guided: bool = False,
    ) -> "Recipe":
        """This recipe for a set of so many pairs (None: a stream), as the command line asks for it.

        Args:
            distil: with TgD and whatever else the recipe distils, or without a teacher; None: as the recipe has it.
            masking: with masked texts or without; None: as the recipe says.
            feature_guided: with FgD; it is there too where the recipe has it, but not without masked texts.

        Raises:
            ValueError: a setting of the teacher, its queue or the ranker, and there is none; FgD without teacher or
                masked texts.
        """
        masking = self.masking if masking is None else masking
        targets = None if distil is False else self.target_guided
        if distil and targets is None:
            if not self.may_distil:
                raise ValueError(f"nothing is distilled while training by {self}: take the recipe r2d2 or prd2")
            targets = TargetGuidedSettings()
        features = self.feature_guided if distil is not False and masking else None
        if feature_guided:
            if not masking or (targets is None and features is None):
                raise ValueError(
                    "feature-guided distillation needs a teacher and masked texts: the recipe prd2, or r2d2 with "
                    "--distil and --mask-ratio"
                )
            features = features or FeatureGuidedSettings()
        if targets is None and (queue_size is not None or alpha is not None):
            raise ValueError(
                "a queue size and alpha belong to target-guided distillation, which does not take place here (--distil)"
            )
        if targets is None and features is None and momentum is not None:
            raise ValueError("a momentum belongs to a teacher, and there is none here (--distil)")
        if targets is not None:
            asked: dict[str, Any] = {"queue_size": queue_size, "alpha": alpha}
            targets = replace(targets, **{name: value for name, value in asked.items() if value is not None})
        return replace(
            self,
            masking=masking,
            target_guided=targets,
            feature_guided=features,
            momentum=self.momentum if momentum is None else momentum,
            rank_from=self.rank_from if rank_from is None else rank_from,
            negative_ramp=self.negative_ramp if negative_ramp is None else negative_ramp,
        )

    def __str__(self) -> str:
        parts = ["TgD" if self.target_guided else "GCPR", *["FGR"] * self.ranker]
        parts += ["MLM"] * (self.ranker and self.masking) + ["FgD"] * (self.feature_guided is not None)
        return " + ".join(parts) + (f", ranking from {self.rank_from:g} of the run on" if self.rank_from else "")


@dataclass(frozen=True)
class PlainRecipe(Recipe):
    """The contrastive loss over the batch and nothing else: CLIP with Chinese text, on R2D2's towers or Wukong's."""

    ranker: bool = False
    masking: bool = False
    target_guided: TargetGuidedSettings | None = None

    may_distil: ClassVar[bool] = False


@dataclass(frozen=True)
class FilipRecipe(PlainRecipe):
    """The token-wise contrastive loss over the batch (FILIP), on a `WukongModel` without token reduction."""

    compares: ClassVar[str] = "token-wise"

    def __str__(self) -> str:
        return "token-wise contrastive loss"


@dataclass(frozen=True)
class WukongRecipe(PlainRecipe):
    """The same on reduced image tokens (arXiv 2202.06767). Its locked-image tuning is a setting of the model
    (`lock_image_tower`), for towers that are trained already."""

    compares: ClassVar[str] = "reduced"

    def __str__(self) -> str:
        return "token-wise contrastive loss on reduced tokens"


@dataclass(frozen=True)
class BriVLRecipe(PlainRecipe):
    """The contrastive loss against two queues of momentum features (arXiv 2103.06561), on two towers with one vector
    per picture and text.

    Args:
        dual_queue: settings of that loss.
        momentum: of the teacher that fills the queues.
    """

    momentum: float | Schedule = 0.99
    dual_queue: DualQueueSettings = field(default_factory=DualQueueSettings)

    @property
    def distils(self) -> bool:
        """True: there is a teacher, though it fills the queues alone."""
        return True

    def callbacks(self) -> list[TrainerCallback]:
        """The callback that is the whole loss."""
        return [DualQueueContrastiveCallback(self.dual_queue, momentum=self.momentum)]

    def adapted(
        self,
        pairs: int | None,
        distil: bool | None = None,
        masking: bool | None = None,
        queue_size: int | None = None,
        alpha: float | None = None,
        momentum: float | None = None,
        rank_from: float | None = None,
        negative_ramp: float | None = None,
        feature_guided: bool = False,
    ) -> "BriVLRecipe":
        """As `Recipe.adapted`; masking and ranking are none of this recipe's. Without `queue_size` the
        queue, whose pairs are the only negatives, holds at most half of the data.

        Raises:
            ValueError: without teacher; with alpha, FgD or ranking.
        """
        if feature_guided:
            raise ValueError("feature-guided distillation is of the recipes r2d2 and prd2; brivl has one objective")
        if alpha is not None:
            raise ValueError("alpha weighs the teacher's soft targets, and the recipe brivl has none")
        if distil is False:
            raise ValueError(
                "the recipe brivl is the teacher's queue and nothing else: leave distillation on, or train with the "
                "recipe clip"
            )
        largest = self.dual_queue.queue_size
        size = queue_size if queue_size is not None else min(largest, pairs // 2 if pairs else largest)
        return replace(
            self,
            dual_queue=replace(self.dual_queue, queue_size=size),
            momentum=self.momentum if momentum is None else momentum,
            rank_from=rank_from or 0.0,
            negative_ramp=negative_ramp or 0.0,
        )

    def __str__(self) -> str:
        return "dual-queue contrastive loss"


@dataclass(frozen=True)
class RankerRecipe(Recipe):
    """The ranker alone, on towers that stand still (this project's): FGR, and MLM where masked texts are asked for.

    What frozen towers make of a set is known before the first step, so the negatives are drawn from all of it
    (`training.negatives`), and pictures are not augmented.
    """

    masking: bool = False
    target_guided: TargetGuidedSettings | None = None
    negative_ramp: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.rank_from or self.distils:
            raise ValueError(
                "the recipe ranker has neither pre-ranking to begin with nor a teacher: its towers stand still; leave "
                "rank_from and distillation out"
            )

    def callbacks(self) -> list[TrainerCallback]:
        """None: the samples themselves say how hard their negatives are."""
        return []

    def __str__(self) -> str:
        return "FGR" + " + MLM" * self.masking + " on frozen towers, with negatives of the whole set"


#: What `r2d2 pretrain --recipe` takes. Of r2d2 the negatives become hard over the first half: with twins for negatives
#: from the first step on a fresh ranker learns little. Masked texts and distillation, which the paper always has, it
#: takes when asked to (`--mask-ratio`, `--distil`): in the comparisons of `benchmarks/` neither was worth its time.
RECIPES: dict[str, Recipe] = {
    "r2d2": Recipe(masking=False, target_guided=None, negative_ramp=0.5),
    "ranker": RankerRecipe(),
    "prd2": Recipe(ranker=False),
    "clip": PlainRecipe(),
    "filip": FilipRecipe(),
    "wukong": WukongRecipe(),
    "brivl": BriVLRecipe(),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name: r2d2, ranker, prd2, clip, filip, wukong or brivl.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def recipe_for(model: nn.Module) -> str:
    """The name of the recipe that a model is made for: by its ranker, a Wukong's by its similarity; a BriVL's is brivl
    where it has no ranker."""
    if isinstance(model.config, WukongConfig):
        return {"global": "clip", "token-wise": "filip", "reduced": "wukong"}[_compares(model)]
    if isinstance(model.config, BriVLConfig) and not model.can_rank:
        return "brivl"
    return "r2d2" if model.can_rank else "prd2"


def _compares(model: nn.Module) -> str:
    if not getattr(model, "is_token_wise", False):
        return "global"
    config: Any = model.config  # a WukongConfig
    return "token-wise" if config.token_reduction is None else "reduced"

"""A curriculum: pre-ranking first, ranking from when its negatives mean something."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..distillation.callbacks import unwrapped
from ..model.ranges_r2d2 import require_number

#: Of a share of the run that is left when ranking begins.
BEGINNING: dict[str, Any] = {"least": 0, "below": 1}


class RankFromCallback(TrainerCallback):
    """Trains an `R2D2ForPreTraining` without FGR and MLM until a share of the run is made, in any Trainer.

        trainer = Trainer(model=model, ..., callbacks=[RankFromCallback(0.3)])

    FGR's negatives are drawn in proportion to exp(s/τ): before pre-ranking tells pairs apart they are any pairs at all,
    and the cross encoders, which take most of a step, are not computed until then. Their weights stay as they are (no
    weight decay either) and their optimizer state begins with them. Whether a step ranks follows from its number and
    the length of the run alone, so a resumed run equals an uninterrupted one. Evaluation reports all losses throughout.
    The curriculum is this project's: the paper trains all objectives from the first step.

    On several processes DistributedDataParallel has to look for parameters without gradient; where the arguments do not
    say, `ddp_find_unused_parameters` is set to True.

    Args:
        share: of the run, before ranking begins; 0: from the first step on.

    Raises:
        ValueError: no share below 1; when training begins, a model without ranker.
    """

    def __init__(self, share: float):
        require_number("rank_from", share, **BEGINNING)
        self.share = share

    def on_init_end(self, args: TrainingArguments, state, control, **kwargs):
        """Before DistributedDataParallel is made."""
        if self.share and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True

    def on_train_begin(self, args, state, control, model: nn.Module | None = None, **kwargs):
        """That there is something to begin later."""
        if not getattr(unwrapped(model), "can_rank", False):
            raise ValueError("rank_from is the share of the run before ranking begins, and this model has no ranker")

    def on_step_begin(self, args, state: TrainerState, control, model: nn.Module | None = None, **kwargs):
        """Ranking on, or off."""
        unwrapped(model).ranking_active = state.global_step >= round(self.share * state.max_steps)

    def on_train_end(self, args, state, control, model: nn.Module | None = None, **kwargs):
        """The model is left as it was."""
        unwrapped(model).ranking_active = True


__all__ = ["BEGINNING", "RankFromCallback"]

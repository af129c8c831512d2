"""A curriculum: pre-ranking first, ranking from when its negatives mean something, the hardest negatives last."""

from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..distillation.callbacks import unwrapped
from ..model.ranges_r2d2 import PART, require_number


class RankingCurriculumCallback(TrainerCallback):
    """When an `R2D2ForPreTraining` begins to rank, and how hard its negatives are, in any Trainer.

        trainer = Trainer(model=model, ..., callbacks=[RankingCurriculumCallback(rank_from=0.3, negative_ramp=0.5)])

    `rank_from` leaves out FGR and MLM until a share of the run is made. FGR's negatives are drawn in proportion to
    exp(s/τ): before pre-ranking tells pairs apart they are any pairs at all, and the cross encoders, which take most of
    a step, are not computed until then. Their weights stay as they are (no weight decay either) and their optimizer
    state begins with them. Whether a step ranks follows from its number and the length of the run alone, so a resumed
    run equals an uninterrupted one. Evaluation reports all losses throughout.

    `negative_ramp` lets the sharpness β of the draw, softmax(β · s/τ), grow from 0 to 1 over a share of the steps that
    rank:

        β = min(1, (t − t₀) / (negative_ramp · (T − t₀)))        t₀ the first step that ranks, T the length of the run

    A fresh ranker learns little from negatives that differ from the truth in one detail; from any others it first
    learns what text and picture have in common. It ends at β = 1, for which both stages' evidence adds up in log-odds
    (`inference.scoring`).

    Both are this project's: the paper trains all objectives from the first step, with β = 1.

    On several processes DistributedDataParallel has to look for parameters without gradient; where the arguments do not
    say, `ddp_find_unused_parameters` is set to True.

    Args:
        rank_from: the share of the run before ranking begins; 0: from the first step on.
        negative_ramp: the share of the rest over which the negatives become hard; 0: hard from the first step on.

    Raises:
        ValueError: no share below 1; when training begins, a model without ranker.
    """

    def __init__(self, rank_from: float = 0.0, negative_ramp: float = 0.0):
        require_number("rank_from", rank_from, **PART)
        require_number("negative_ramp", negative_ramp, **PART)
        self.rank_from, self.negative_ramp = rank_from, negative_ramp

    def on_init_end(self, args: TrainingArguments, state, control, **kwargs):
        """Before DistributedDataParallel is made."""
        if self.rank_from and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True

    def on_train_begin(self, args, state, control, model: nn.Module | None = None, **kwargs):
        """That there is something to begin later."""
        if not getattr(unwrapped(model), "can_rank", False):
            raise ValueError("rank_from and negative_ramp say how ranking begins, and this model has no ranker")

    def on_step_begin(self, args, state: TrainerState, control, model: nn.Module | None = None, **kwargs):
        """Ranking on, or off; the sharpness of its negatives."""
        student, begin = unwrapped(model), round(self.rank_from * state.max_steps)
        ramp = round(self.negative_ramp * (state.max_steps - begin))
        made = state.global_step - begin
        student.ranking_active = made >= 0
        student.negative_sharpness = min(max(made, 0) / ramp, 1.0) if ramp else 1.0

    def on_train_end(self, args, state, control, model: nn.Module | None = None, **kwargs):
        """The model is left as it was."""
        student = unwrapped(model)
        student.ranking_active, student.negative_sharpness = True, 1.0


__all__ = ["RankingCurriculumCallback"]

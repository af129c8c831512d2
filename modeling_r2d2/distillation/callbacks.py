"""Two-way distillation (arXiv 2205.03860) as callbacks of transformers' Trainer.

    trainer = Trainer(model=R2D2ForPreTraining(config), ..., callbacks=[TwoWayDistillationCallback()])

A callback sees neither inputs nor loss, so while training runs a hook on the model calls the teacher for every batch
and hands its targets to `forward`. The authors never released this part; what the paper leaves open is a setting.
"""

import inspect
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..jobs.checkpoints import load_state, mark_complete, require_complete, save_state
from ..jobs.divergence import DivergenceCallback
from ..jobs.running_means import RunningMeans
from ..model.distributed_r2d2 import world_size
from .schedules import RisingMomentum, Schedule, constant, require_momentum
from .settings import FeatureGuidedSettings, TargetGuidedSettings
from .state import DistillationState

#: The run in which a model is being distilled; a model trains in one at a time.
_RUNS: "WeakKeyDictionary[nn.Module, _Run]" = WeakKeyDictionary()


class _Run:
    """One training run of one student: settings of all its callbacks, then the state and the hooks."""

    def __init__(self, student: nn.Module, trainer_state: TrainerState, owner: "DistillationCallback"):
        self.student: Any = student
        self.trainer_state, self.owner = trainer_state, owner
        self.target_guided: TargetGuidedSettings | None = None
        self.feature_guided: FeatureGuidedSettings | None = None
        self.distillation: DistillationState | Any = None  # until `start`
        self.alpha = constant(0.0)
        self.logged = RunningMeans()
        self._handles: list[Any] = []

    def join(self, callback: "DistillationCallback"):
        """Add the objectives of a callback; all share the first one's teacher."""
        for name in ("target_guided", "feature_guided"):
            settings = getattr(callback, name)
            if settings is None:
                continue
            if getattr(self, name) is not None:
                raise ValueError(
                    f"two callbacks of this run bring {name.replace('_', '-')} distillation: one is enough"
                )
            setattr(self, name, settings)
        if callback.momentum != self.owner.momentum:
            raise ValueError(
                f"the callbacks of a run share one teacher, but their momenta differ: {self.owner.momentum} and "
                f"{callback.momentum}"
            )

    def start(self, args: TrainingArguments, pairs: int | None) -> nn.Module:
        """Teacher, queue and centre for this run, which are returned, and the hooks; `pairs`: of the data, if known."""
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        batch = args.train_batch_size * world_size()
        if self.target_guided is not None:
            self.alpha = self.target_guided.alpha_schedule(self.trainer_state.max_steps)
        self.distillation = DistillationState(
            self.student, self.target_guided, self.feature_guided, batch, args.seed, autocast, pairs=pairs
        )
        self._handles = [
            self.student.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.student.register_forward_hook(self._after_forward, with_kwargs=True),
        ]
        return self.distillation

    def stop(self):
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if _RUNS.get(self.student) is self:
            del _RUNS[self.student]

    @property
    def active(self) -> bool:
        return self.student.training and torch.is_grad_enabled()

    def targets(self, batch: dict[str, Any], chunk: int | None = None):
        """The teacher's targets for a micro-batch of this step."""
        step = self.trainer_state.global_step
        return self.distillation.targets(batch, step, self.student.current_temperature(), self.alpha(step), chunk)

    def _before_forward(self, student: nn.Module, arguments: tuple, inputs: dict[str, Any]):
        named = inspect.signature(student.forward).bind_partial(*arguments, **inputs).arguments if arguments else inputs
        if not self.active or not named.get("return_loss", True) or named.get("teacher") is not None:
            return None
        extra = named.pop("kwargs", {}) if arguments else {}
        return (), {**named, **extra, "teacher": self.targets(named)}

    def _after_forward(self, student: nn.Module, arguments: tuple, inputs: dict[str, Any], outputs: Any) -> Any:
        if not self.active or outputs.get("loss") is None:
            return
        self.distillation.note_student(outputs.image_embeds, outputs.text_embeds)
        if not self.owner.saved_by_trainer:  # R2D2Trainer logs the parts by itself
            self.logged.add(outputs)

    def measures(self) -> dict[str, float]:
        """Everything that distillation logs, since the last call."""
        parts = self.logged.pop()
        if self.target_guided is not None:
            parts["alpha"] = self.alpha(self.trainer_state.global_step)
        parts["teacher_momentum"] = self.owner.momentum(self.trainer_state.global_step)
        return {**parts, **self.distillation.measures()}


class DistillationCallback(TrainerCallback):
    """What the three callbacks share. Works in the stock `Trainer` and in `R2D2Trainer`.

    Per optimizer step: every micro-batch passes the teacher, enters the queue and is compared with it; after the
    step the teacher follows the student, reliability weights decay and the centre moves. Evaluation, and forward
    passes without gradient, leave all of it alone. A step that the optimizer skipped (fp16 overflow) moves neither
    teacher nor reliability nor centre. A run that diverges stops at that step (`modeling_r2d2.jobs.divergence`).

    Checkpoints get `distillation.safetensors`, and at last `complete.json`; a resumed run equals an uninterrupted
    one. The stock Trainer writes checkpoints in place, rotates them before its callbacks save, and does not say where
    it resumes from: keep `save_total_limit` at 2 or more, and set `resume_from` if the checkpoint lies outside of
    `output_dir`. Reports (TensorBoard …) of the stock Trainer run before this callback's figures are added to its
    log; `R2D2Trainer` reports them.

    Args:
        momentum: m of the teacher; a number is what `RisingMomentum` rises to, a `Schedule` of the global step is taken
            as it is.
        resume_from: the checkpoint that the stock Trainer resumes from, if not `output_dir/checkpoint-<step>`.
        missing_state: what to do on resuming from a checkpoint without distillation state: "refuse", or "start" with
            a teacher equal to the student and an empty queue.
    """

    def __init__(
        self,
        target_guided: TargetGuidedSettings | None,
        feature_guided: FeatureGuidedSettings | None,
        momentum: float | Schedule = 0.995,
        resume_from: str | Path | None = None,
        missing_state: Literal["refuse", "start"] = "refuse",
    ):
        if missing_state not in ("refuse", "start"):
            raise ValueError(f"missing_state must be 'refuse' or 'start', got {missing_state!r}")
        require_momentum(momentum)
        self.target_guided, self.feature_guided = target_guided, feature_guided
        self.momentum = momentum if isinstance(momentum, Schedule) else RisingMomentum(momentum)
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.missing_state = missing_state
        #: True where the trainer writes and reads the state, and logs the parts of the loss, by itself: R2D2Trainer
        self.saved_by_trainer = False
        self._divergence: DivergenceCallback | None = None
        self.run: _Run | Any = None  # until training begins

    @property
    def state(self) -> DistillationState | None:
        """Teacher, queue and centre; None before training."""
        return None if self.run is None else self.run.distillation

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """When a Trainer is made, which makes its optimizer later: a model without the heads of feature-guided
        distillation gets them. One in a wrapper (PEFT), or whose optimizer is there already, must have them."""
        lacking = self.feature_guided is not None and not getattr(model, "has_feature_heads", True)
        if lacking and kwargs.get("optimizer") is None and unwrapped(model) is model:
            model.add_feature_heads()

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        """Join the run of this model, or begin it."""
        student = _student(model)
        run = _RUNS.get(student)
        if run is not None and run.trainer_state is not state:  # left behind by a run that was broken off
            run.stop()
            run = None
        if run is None:
            run = _RUNS[student] = _Run(student, state, self)
        run.join(self)
        self.run = run
        self._watch(state, model)

    def _watch(self, state: TrainerState, model: nn.Module):
        """R2D2Trainer watches for divergence by itself; in the stock Trainer one callback of the run does."""
        self._divergence = DivergenceCallback() if self.run.owner is self and not self.saved_by_trainer else None
        if self._divergence is not None:
            self._divergence.on_train_begin(None, state, None, model=model)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """In the stock Trainer: stop where the run has diverged."""
        if self._divergence is not None:
            self._divergence.on_pre_optimizer_step(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, **kwargs):
        """In the stock Trainer: stop at figures that are not finite."""
        if self._divergence is not None:
            self._divergence.on_evaluate(args, state, control, **kwargs)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Before the first batch, when every callback has joined: make or restore the state."""
        run = self.run
        if run.owner is not self or run.distillation is not None:
            return
        distillation = run.start(args, _pairs(train_dataloader))
        if state.global_step == 0:
            return
        folder = self.resume_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            if not self.saved_by_trainer:
                require_complete(folder)
                _require_optimizer(folder, args)
            load_state(folder, distillation)
        except ValueError:
            if self.missing_state == "refuse":
                run.stop()
                raise

    def on_step_end(self, args, state, control, **kwargs):
        """After an optimizer step, or one that was skipped."""
        if self._divergence is not None:
            self._divergence.on_step_end(args, state, control, **kwargs)
        run = self.run
        if run.owner is not self:
            return
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            run.distillation.discard()
        else:
            run.distillation.commit(run.student, self.momentum(state.global_step))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add the parts of the loss and the measures of distillation to a training log that lacks them."""
        if self.run.owner is self and logs and "loss" in logs and "teacher_agreement" not in logs:
            measures = {name: value for name, value in self.run.measures().items() if name not in logs}
            logs.update(measures)
            if state.log_history:
                state.log_history[-1].update(measures)

    def on_save(self, args, state, control, **kwargs):
        """In the stock Trainer: the state into the checkpoint just written, then the mark."""
        if self.run.owner is not self or self.saved_by_trainer or not args.should_save:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_state(folder, self.run.distillation)
        mark_complete(folder)

    def on_train_end(self, args, state, control, **kwargs):
        """Take the hooks off the model; the state stays at hand as `callback.state`."""
        self.run.stop()
        if self._divergence is not None:
            self._divergence.on_train_end(args, state, control, **kwargs)


class TargetGuidedDistillationCallback(DistillationCallback):
    """Target-guided distillation (TgD) alone: soft targets over batch and queue replace GCPR's.

    Args:
        settings: `TargetGuidedSettings`, or its fields by name.
    """

    def __init__(
        self,
        settings: TargetGuidedSettings | None = None,
        *,
        momentum=0.995,
        resume_from=None,
        missing_state="refuse",
        **fields,
    ):
        super().__init__(_settings(TargetGuidedSettings, settings, fields), None, momentum, resume_from, missing_state)


class FeatureGuidedDistillationCallback(DistillationCallback):
    """Feature-guided distillation (FgD) alone: the student's features of masked inputs follow the teacher's of whole
    ones, by heads of the model's own (`R2D2Config.fgd_prototypes`; a model without them gets them when the Trainer is
    made). The batch must carry `masked_input_ids` and `mlm_labels`.

    Args:
        settings: `FeatureGuidedSettings`, or its fields by name.
    """

    def __init__(
        self,
        settings: FeatureGuidedSettings | None = None,
        *,
        momentum=0.995,
        resume_from=None,
        missing_state="refuse",
        **fields,
    ):
        super().__init__(None, _settings(FeatureGuidedSettings, settings, fields), momentum, resume_from, missing_state)


class TwoWayDistillationCallback(DistillationCallback):
    """Both ways with one teacher: TgD and FgD, as R2D2 and PRD2 are pre-trained.

    Args:
        target_guided: settings of the two ways; None: their defaults.
        feature_guided: settings of the two ways; None: their defaults.
    """

    def __init__(
        self,
        target_guided: TargetGuidedSettings | None = None,
        feature_guided: FeatureGuidedSettings | None = None,
        *,
        momentum=0.995,
        resume_from=None,
        missing_state="refuse",
    ):
        super().__init__(
            target_guided or TargetGuidedSettings(),
            feature_guided or FeatureGuidedSettings(),
            momentum,
            resume_from,
            missing_state,
        )


def distillation_of(model: nn.Module) -> _Run | None:
    """The run in which a model is being distilled, None if it is not."""
    return _RUNS.get(unwrapped(model))


def _settings(kind: type, settings: Any, fields: dict[str, Any]):
    if settings is not None and fields:
        raise ValueError(f"give either a {kind.__name__} or its fields by name, not both: {', '.join(fields)}")
    return settings or kind(**fields)


def unwrapped(model: Any) -> Any:
    """The model within DistributedDataParallel, torch.compile and PEFT."""
    while True:
        if hasattr(model, "module"):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def _student(model: Any) -> Any:
    student = unwrapped(model)
    if "teacher" not in inspect.signature(student.forward).parameters:
        raise TypeError(
            f"distillation trains R2D2ForPreTraining (or a model whose forward takes `teacher`), not "
            f"{type(student).__name__}"
        )
    return student


def _require_optimizer(folder: Path, args: TrainingArguments) -> None:
    """The stock Trainer goes on without optimizer and schedule where their files are missing, and says nothing."""
    lacking = [name for name in ("optimizer.pt", "scheduler.pt") if not (folder / name).is_file()]
    if lacking and not args.fsdp and not args.deepspeed:
        raise ValueError(f"{folder} cannot be resumed: it has no {', '.join(lacking)}")


def _pairs(dataloader: Any) -> int | None:
    """The number of different pairs in the data; None of a stream."""
    dataset = getattr(dataloader, "dataset", None)
    if dataset is None or not has_length(dataset):  # on several processes a stream is wrapped in what seems to have one
        return None
    return len(dataset) // getattr(dataset, "passes", 1)

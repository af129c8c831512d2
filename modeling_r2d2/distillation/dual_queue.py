"""BriVL's dual-queue contrastive training (arXiv 2103.06561) as a callback of transformers' Trainer.

    trainer = Trainer(model=R2D2ForPreTraining(config), ..., callbacks=[DualQueueContrastiveCallback()])

Teacher, queue and checkpoints are those of two-way distillation. The teacher's features of earlier pairs are the only
negatives, so the loss does not depend on the batch: the model's own in-batch loss is switched off while it trains.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerState, TrainingArguments

from ..model.batch_norms_r2d2 import batch_norms, constant_running_statistics
from ..model.distillation_losses_r2d2 import cosine_agreement
from ..model.distributed_r2d2 import gather, gather_with_ids, world_size
from ..model.modeling_wukong import WukongModel
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.ranges_r2d2 import COUNT, POSITIVE, require_numbers
from .callbacks import _RUNS, DistillationCallback, _Run, _settings, unwrapped
from .dual_queue_losses import dual_queue_loss
from .queue import FeatureQueue
from .schedules import Schedule, constant, require_momentum
from .teacher import MomentumTeacher, more_of_images, take_weights


@dataclass(frozen=True)
class DualQueueSettings:
    """The loss of BriVL.

    Args:
        queue_size: earlier pairs that are the negatives (9,600 in the paper); at least the batch of all workers. Keep
            it below the size of a small data set.
        temperature: τ, fixed (0.07 in the paper).
        same_id_negatives: whether queued pairs of a row's own image id are its negatives too, as every entry is in
            the paper. Default False (ours): where ids repeat within a queue they are right answers, not wrong ones;
            where they do not, both are the same.

    Raises:
        ValueError: a value out of its range.
    """

    queue_size: int = 9600
    temperature: float = 0.07
    same_id_negatives: bool = False

    def __post_init__(self):
        require_numbers(self, {"queue_size": COUNT, "temperature": POSITIVE})


class DualQueueState(nn.Module):
    """What the dual queue remembers between steps: momentum teacher and queue. Its `state_dict` is all that a
    checkpoint needs.

    For every micro-batch: `keys`, then `loss`. Keys enter the queue once their own loss has passed backward: with the
    next micro-batch, or at the end of the optimizer step (`commit`, or `discard` where it was skipped).

    Keys of a tower with batch norms are normalised by their batch wherever the student's are, as MoCo's are; the
    averaged running statistics are for whoever uses the teacher afterwards.

    Args:
        student: the model that trains, in the mode that it trains in once `keys` is called.
        settings: of the loss.
        batch: pairs per micro-batch over all workers, at most.
        autocast: see `MomentumTeacher`.
        teacher: see `DistillationState`.

    Raises:
        ValueError: a queue smaller than the batch.
    """

    def __init__(
        self,
        student: R2D2ForPreTraining | WukongModel,
        settings: DualQueueSettings,
        batch: int,
        autocast: torch.dtype | None = None,
        teacher: MomentumTeacher | None = None,
    ):
        super().__init__()
        if settings.queue_size < batch:
            raise ValueError(
                f"queue_size is {settings.queue_size}, less than the batch of all workers ({batch}), which enters it "
                "at once: enlarge the queue or shrink the batch"
            )
        self.settings = settings
        self.teacher = teacher or MomentumTeacher(student, autocast)
        theirs = batch_norms(student)
        # a plain list: the student is no part of this state
        self._norms = [
            (ours, theirs[name]) for name, ours in batch_norms(self.teacher.model).items() if ours.track_running_stats
        ]
        device = student.temperature.device
        # a ring of `queue_size` slots: what is compared with is never the batch itself
        self.queue = FeatureQueue(settings.queue_size - batch, batch, student.config.projection_dim, device)
        self._temperature = torch.tensor(settings.temperature, device=device)
        self._local: tuple[Tensor, Tensor] | Any = None  # until the first batch
        self._left_out: Tensor | None = None
        self._waiting: tuple[Tensor, Tensor] | None = None  # features and ids of all workers
        self._agreement: list[Tensor] = []

    def keys(self, batch: dict[str, Any]):
        """Encode one micro-batch of B local pairs by the teacher, for the `loss` that follows."""
        self._enqueue()
        with _normalized_by_the_batch([ours for ours, theirs in self._norms if theirs.training]):
            features = self.teacher.encode(
                batch["pixel_values"],
                batch["input_ids"],
                batch.get("attention_mask"),
                batch.get("token_type_ids"),
                images=more_of_images(self.teacher.model, batch),
            )
        self._local = (features.image_embeds, features.text_embeds)
        both, image_ids = torch.cat(self._local, dim=1), batch.get("image_ids")
        self._left_out = None
        if image_ids is None:
            both = gather(both)
            self._waiting = (both, self.queue.new_ids(len(both)))
            return
        self._waiting = gather_with_ids(both, image_ids)
        if not self.settings.same_id_negatives:
            self._left_out = image_ids[:, None] == self.queue.candidates()[2]

    def loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """`dual_queue_loss` of the student's embeddings (B, D) of the micro-batch that `keys` saw last."""
        images, texts = self._local
        queued_images, queued_texts, _, _ = self.queue.candidates()
        agreement = cosine_agreement(image_embeds.detach(), images) + cosine_agreement(text_embeds.detach(), texts)
        self._agreement.append(agreement / 2)
        return dual_queue_loss(
            image_embeds, text_embeds, images, texts, queued_images, queued_texts, self._temperature, self._left_out
        )

    def _enqueue(self):
        if self._waiting is not None:
            both, ids = self._waiting
            images, texts = both.chunk(2, dim=1)
            self.queue.push(images, texts, ids)
            self._waiting = None

    def commit(self, student: nn.Module, momentum: float):
        """End of an optimizer step: the keys enter the queue, the teacher follows the student."""
        self._enqueue()
        self.teacher.update(student, momentum)

    def discard(self):
        """End of a step that the optimizer skipped: the teacher stays, and its keys are as good as before."""
        self._enqueue()

    def measures(self) -> dict[str, float]:
        """What is logged: `teacher_agreement` (mean cosine of student and teacher embeddings since the last call) and
        `queue_fill`."""
        measures = {"queue_fill": self.queue.filled / self.queue.slots}
        if self._agreement:
            measures["teacher_agreement"] = float(torch.stack(self._agreement).mean())
            self._agreement = []
        return measures


@contextmanager
def _normalized_by_the_batch(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms that use the statistics of what they see, and note nothing of it."""
    for norm in norms:
        norm.train()
    try:
        with constant_running_statistics(norms):
            yield
    finally:
        for norm in norms:
            norm.eval()


class _DualQueueRun(_Run):
    """A run whose loss is the dual queue's, which the hooks put in place of the model's own."""

    owner: "DualQueueContrastiveCallback"
    distillation: Any

    def join(self, callback: DistillationCallback):
        if callback is not self.owner:
            raise ValueError(_ALONE)

    def start(self, args: TrainingArguments, pairs: int | None) -> nn.Module:
        """Teacher and queue for this run, which are returned, and the hooks."""
        if getattr(args, "grad_cache_chunk", 0):
            raise ValueError(
                "grad_cache_chunk compares large batches in little memory, but the dual queue compares nothing within "
                "the batch: set it to 0 and use gradient_accumulation_steps"
            )
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        batch = args.train_batch_size * world_size()
        teacher = MomentumTeacher(self.student, autocast)
        if self.owner.teacher is not None:
            take_weights(teacher.model, self.owner.teacher)
            # before its first keys it follows the student, as before all later ones
            teacher.update(self.student, self.owner.momentum(0))
        self.distillation = DualQueueState(self.student, self.owner.settings, batch, autocast, teacher)
        self._handles = [
            self.student.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.student.register_forward_hook(self._after_forward, with_kwargs=True),
        ]
        self._compares = False
        return self.distillation

    def _before_forward(self, student: nn.Module, arguments: tuple, inputs: dict[str, Any]):
        signature = inspect.signature(student.forward)
        named = signature.bind_partial(*arguments, **inputs).arguments if arguments else inputs
        extra = named.pop("kwargs", {}) if arguments else {}
        self._compares = self.active and bool(named.get("return_loss", signature.parameters["return_loss"].default))
        if not self._compares:
            return None
        if not len(named["input_ids"]) == len(named["pixel_values"]) == len(named.get("image_ids", named["input_ids"])):
            raise ValueError(
                f"training pairs image i with text i: {len(named['pixel_values'])} images, {len(named['input_ids'])} "
                "texts (and as many image_ids, where there are any)"
            )
        self.distillation.keys(named)
        return (), {**named, **extra, "return_loss": False}

    def _after_forward(self, student: nn.Module, arguments: tuple, inputs: dict[str, Any], outputs: Any):
        if not self._compares:
            return None
        self._compares = False
        loss = self.distillation.loss(outputs["image_embeds"], outputs["text_embeds"])
        return type(outputs)(**{**outputs, "loss": loss})


_ALONE = (
    "DualQueueContrastiveCallback is the whole loss of a run: it cannot be combined with two-way distillation or with "
    "a second one of its kind"
)


class DualQueueContrastiveCallback(DistillationCallback):
    """Trains two towers as BriVL does: against the momentum encoders' features of earlier pairs (arXiv 2103.06561).

    Any model of two towers with one embedding per image and text: `R2D2ForPreTraining` or `BriVLForPreTraining` without
    a ranker, or `WukongModel` with global similarity. Its temperature is set to τ and frozen, as in the paper, so that
    the logits of the trained model are those of the loss. Checkpoints, resuming, evaluation and skipped steps: as
    `DistillationCallback` says.

    BriVL's own towers are those of `BriVLForPreTraining`.

    Args:
        settings: `DualQueueSettings`, or its fields by name.
        momentum: of the teacher (0.99 in the paper, from the first step on), a number or a `Schedule` of the global
            step.
        teacher: weights that it begins with, by the model's names, where a run goes on whose teacher was kept (the
            momentum copies of a BriVL checkpoint: `convert_brivl_checkpoint(…, momentum=True).state_dict()`); None: the
            student's.
        resume_from: see `DistillationCallback`.
        missing_state: see `DistillationCallback`.

    Raises:
        TypeError, ValueError: when training begins, a model of another kind, or other callbacks that bring a teacher.
    """

    def __init__(
        self,
        settings: DualQueueSettings | None = None,
        *,
        momentum: float | Schedule = 0.99,
        teacher: Mapping[str, Tensor] | None = None,
        resume_from=None,
        missing_state="refuse",
        **fields,
    ):
        require_momentum(momentum)
        fixed = momentum if isinstance(momentum, Schedule) else constant(momentum)
        super().__init__(None, None, fixed, resume_from, missing_state)
        self.teacher = teacher
        self.settings = _settings(DualQueueSettings, settings, fields)

    def on_init_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Before DistributedDataParallel asks which parameters train: fix the temperature."""
        self._fix_temperature(_checked(model))

    def on_train_begin(self, args, state: TrainerState, control, model=None, **kwargs):
        """Begin the run of this model."""
        student = _checked(model)
        run = _RUNS.get(student)
        if run is not None and run.trainer_state is not state:  # left behind by a run that was broken off
            run.stop()
            run = None
        if run is not None:
            raise ValueError(_ALONE)
        self._fix_temperature(student)
        self.run = _RUNS[student] = _DualQueueRun(student, state, self)
        self._watch(state, model)

    @torch.no_grad()
    def _fix_temperature(self, student: R2D2ForPreTraining | WukongModel):
        student.temperature.requires_grad_(False).fill_(self.settings.temperature)


def _checked(model: Any) -> R2D2ForPreTraining | WukongModel:
    """The model within its wrappers, if it can be trained so."""
    student = unwrapped(model)
    wanted = "the dual queue trains R2D2ForPreTraining without a ranker, or WukongModel with global similarity"
    if not all(hasattr(student, name) for name in ("get_image_features", "get_text_features", "temperature")) or (
        "return_loss" not in inspect.signature(student.forward).parameters
    ):
        raise TypeError(f"{wanted}, not {type(student).__name__}")
    if student.can_rank:
        raise ValueError(f"{wanted}; this model has a ranker, which would not train: set cross_encoder_config=None")
    if getattr(student, "is_token_wise", False):
        raise ValueError(f"{wanted}; this one compares token by token, and the queue holds one vector per picture")
    return student

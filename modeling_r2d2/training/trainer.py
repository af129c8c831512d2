"""R2D2Trainer: the stock Trainer that also logs the parts of the loss and where the time goes, and whose checkpoints
are complete or absent."""

import inspect
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, TrainOutput

from ..distillation.callbacks import DistillationCallback, distillation_of, unwrapped
from ..distillation.teacher import saved_teacher, take_weights
from ..inference.finite import require_finite
from ..inference.loading import one_line_errors
from ..inference.pickles import refuse_unsafe_pickles
from ..jobs.checkpoints import (
    mark_complete,
    place_checkpoint,
    require_complete,
    rotate_checkpoints,
    save_state,
    steps_of,
)
from ..jobs.divergence import DivergenceGuard
from ..jobs.progress import LossProgressCallback
from ..jobs.running_means import LOGGED_PARTS, RunningMeans
from ..jobs.same_run import (
    checkpoint_to_resume,
    describe_data,
    describe_model,
    describe_processor,
    finished_state,
    note_run,
    plain,
    require_same_run,
    tell_lengthened,
)
from ..model.batch_norms_r2d2 import batch_norms
from ..processing.files.writing import (
    clean_leftovers,
    explained,
    is_partial,
    make_readable,
    partial_path,
    staged_folder,
)
from .grad_cache import average_gradients, cached_backward
from .gradient_shares import gradient_shares, tower_states

logger = logging.getLogger(__name__)

#: Of `TrainingArguments`: what the weights depend on. How often a run logs, saves or evaluates, and how many processes
#: load its data, may change when it is resumed.
FIXED_ARGUMENTS = (
    *("seed", "data_seed", "max_steps", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "fp16", "tf32", "grad_cache_chunk", "label_smoothing_factor", "neftune_noise_alpha"),
    *("train_sampling_strategy", "dataloader_drop_last"),
)


class R2D2Trainer(Trainer):
    """Trainer for `R2D2ForPreTraining` and `WukongModel` (any other R2D2 model trains in it too, as all do in the stock
    Trainer).

    Beyond the stock Trainer it logs every part of the loss (train and eval) and of distillation, `images_per_second`
    and `data_wait` (share of the time since the last log spent waiting for batches), shows them in the progress
    bar, logs the share of every objective in the gradient where `R2D2TrainingArguments.gradient_shares` asks for it,
    stops at the step where the run diverges, leaves temperature, norms and biases without weight decay, and writes a
    checkpoint aside before it renames it: a folder named `checkpoint-<step>` is complete.

    A run is resumed from whole checkpoints of the same run alone (`same_run`); of a finished one nothing is trained.

    Args:
        run_settings: what the run depends on beside arguments, model, processor, distillation and data, by name.
        publish: "teacher": every evaluation is made with the teacher's weights too (`eval_teacher_…`), and at the end
            the model takes them: towers, projections and running statistics are then the moving average, the ranker
            is the one that was trained. Checkpoints hold the student as ever.

    Raises:
        ValueError: a tokenizer with more tokens than the model's vocabulary; `label_smoothing_factor` for a model whose
            loss has no labels; a teacher to publish where there is none, or of the best checkpoint; `gradient_shares`
            of a sharded model; when it is resumed, a checkpoint of another run, or one that is not whole.
        NotFiniteError: while training, and when a model is saved: losses, gradients, weights or figures of an
            evaluation are not finite.
    """

    loss_is_scaled_for_ga = False
    model: PreTrainedModel

    def __init__(
        self,
        *args,
        run_settings: Mapping[str, Any] | None = None,
        publish: Literal["student", "teacher"] = "student",
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.publish = publish
        self._check_teacher()
        self.run_settings = dict(run_settings or {})
        self._identity: dict[str, Any] | None = None
        self._check_vocabulary()
        if getattr(self.args, "gradient_shares", False) and not self._is_plain:
            raise ValueError("gradient_shares measures models that are whole on every worker, not sharded ones")
        self._take_label_smoothing()
        self._warn_of_batch_statistics()
        self._parts = {True: RunningMeans(), False: RunningMeans()}  # by model.training
        self._gradient_shares: dict[str, torch.Tensor] = {}
        self._guard = DivergenceGuard()
        self._waited, self._images, self._since = 0.0, 0, time.perf_counter()
        self._total = {"waited": 0.0, "seconds": 0.0, "images": 0}
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LossProgressCallback())

    def _check_teacher(self):
        if self.publish == "student":
            return
        if not self._distillation_callbacks():
            raise ValueError(
                "there is no teacher to publish: train with a recipe that has one (prd2, brivl, r2d2 with --distil)"
            )
        if self.args.load_best_model_at_end:
            raise ValueError("the teacher that is published is the last one: leave load_best_model_at_end out")

    def _check_vocabulary(self):
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        text_config = getattr(self.model.config, "text_config", None)
        if text_config is None or not hasattr(tokenizer, "get_vocab"):
            return
        if len(tokenizer) > text_config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens but the model's vocabulary {text_config.vocab_size}: "
                "they do not belong together (model.resize_token_embeddings adapts the model)"
            )

    def _take_label_smoothing(self):
        """Matching and captions smooth in their own loss: Trainer's smoother reads one `logits`, which a ranker of two
        encoders lacks, and shifts the labels of those decoders alone that transformers lists."""
        self._smoothing: dict[str, float] = {}
        if self.label_smoother is None:
            return
        of_adapters = getattr(self.model, "get_base_model", None)
        model = self.model if of_adapters is None else of_adapters()
        accepted = inspect.signature(model.forward).parameters
        if "labels" not in accepted:
            raise ValueError(
                f"label_smoothing_factor smooths labels, and the loss of {type(model).__name__} has none: leave it at 0"
            )
        if "smoothing" in accepted:
            self._smoothing, self.label_smoother = {"smoothing": self.label_smoother.epsilon}, None

    def _warn_of_batch_statistics(self):
        norms = [] if getattr(self.model, "towers_frozen", False) else list(batch_norms(self.model))
        if norms and self.args.world_size > 1 and self.args.should_log:
            logger.warning(
                f"{norms[0]} and {len(norms) - 1} more layers normalise by the batch of one process: several "
                "processes do not equal one with the whole batch (torch.nn.SyncBatchNorm, or a frozen tower, would)"
            )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay for matrices only: not for norms, biases or the temperature."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() > 1]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer, keeping the parts of the loss for the next log, and what `gradient_shares` asks for."""
        given = {**inputs, **self._smoothing}
        measured = model.training and self._measures_gradients
        noting: AbstractContextManager[list[torch.Tensor]] = tower_states(self.model) if measured else nullcontext([])
        with noting as states:
            loss, outputs = super().compute_loss(
                model, given, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if measured:
            self._measure_gradients(outputs, states)
        self._count(model.training, outputs, inputs, loss)
        return (loss, outputs) if return_outputs else loss

    @property
    def _measures_gradients(self) -> bool:
        """Whether this is the last micro-batch of a step that will be logged."""
        asked = getattr(self.args, "gradient_shares", False) and hasattr(self.model, "weighted_losses")
        if not asked or not self.accelerator.sync_gradients:
            return False
        step, by_steps = self.state.global_step + 1, self.args.logging_strategy == IntervalStrategy.STEPS
        return (by_steps and step % self.state.logging_steps == 0) or (self.args.logging_first_step and step == 1)

    def _measure_gradients(self, outputs: Any, states: list[torch.Tensor]):
        parts = {name: outputs[name] for name in outputs if name in LOGGED_PARTS and name.startswith("loss_")}
        losses = cast(Any, self.model).weighted_losses(parts)
        if len(losses) < 2 or not any(each.requires_grad for each in states):
            return
        if (scaler := self.accelerator.scaler) is not None:  # else half-precision gradients are lost below its range
            losses = {name: scaler.scale(loss) for name, loss in losses.items()}
        self._gradient_shares = gradient_shares(losses, states)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in Trainer; with `grad_cache_chunk` the whole batch is compared while a chunk of it is in memory.

        Raises:
            ValueError: `grad_cache_chunk` with another model than `R2D2ForPreTraining`.
        """
        chunk = getattr(self.args, "grad_cache_chunk", 0)
        if not chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        student, scaler = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False), self.accelerator.scaler
        if not hasattr(student, "encode_pairs"):
            raise ValueError(
                f"grad_cache_chunk is for R2D2ForPreTraining, not {type(student).__name__}: set it to 0 and use "
                "gradient_accumulation_steps"
            )
        # by `scale`, not `get_scale`, which would leave the scaler uninitialised
        scale = 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=self.args.device)))
        scale /= self.current_gradient_accumulation_steps
        with self.accelerator.no_sync(model), self.accelerator.autocast():
            run = distillation_of(student)
            teacher = None if run is None else run.targets(inputs, chunk)
            outputs = cached_backward(student, inputs, chunk, teacher, scale=scale)
        if run is not None:
            run.distillation.note_student(outputs["image_embeds"], outputs["text_embeds"])
        if self.accelerator.sync_gradients:
            average_gradients(student)
        self._count(True, outputs, inputs, outputs["loss"])
        return outputs["loss"] / self.current_gradient_accumulation_steps

    def _count(self, training: bool, outputs: Any, inputs: dict[str, Any], loss: torch.Tensor):
        """Keep what the next log tells, and what the end of the step checks."""
        if training:
            self._guard.note(outputs, loss)
        if isinstance(outputs, dict):
            self._parts[training].add(outputs)
        pairs = inputs.get("valid_negatives", inputs.get("pixel_values"))
        if training and pairs is not None:
            self._images += len(pairs) * self.args.world_size

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return self._checked_norm(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float:
        return self._checked_norm(model, math.inf) if grad_norm is None else super()._get_grad_norm(model, grad_norm)

    def _checked_norm(self, model: nn.Module, limit: float) -> torch.Tensor:
        """Norm of the gradients, which are clipped to `limit` once they are known to be finite: clipping by NaN would
        leave nothing to name.

        Raises:
            NotFiniteError: the run has diverged.
        """
        step, scaled = self.state.global_step + 1, self.accelerator.scaler is not None
        if not self._is_plain or self._has_mixed_mesh_grads(model):  # sharded: the library knows how to add up
            norm = super()._clip_grad_norm(model) if limit < math.inf else super()._get_grad_norm(model)
            if hasattr(norm, "full_tensor"):
                norm = norm.full_tensor()
            norm = torch.as_tensor(norm, device=self.args.device)
            self._guard.check(step, model.named_parameters(), norm, scaled, self.args.output_dir)
            return norm
        self.accelerator.unscale_gradients()
        named = [(name, p) for name, p in self.model.named_parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for _, p in named if p.grad is not None])
        self._guard.check(step, named, norm, scaled, self.args.output_dir)
        if limit < math.inf:
            torch.nn.utils.clip_grads_with_norm_([p for _, p in named], limit, norm)
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer.

        Raises:
            NotFiniteError: weights are not finite; nothing is written.
        """
        self.check_weights()
        super().save_model(output_dir, _internal_call)

    def check_weights(self) -> None:
        """That there is no NaN and no infinity among them, on any worker.

        Raises:
            NotFiniteError: names the first of them.
        """
        self._guard.check_weights(self.state.global_step, self.model, self.args.output_dir)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in Trainer; a teacher that is to be published is evaluated too, while training.

        Raises:
            NotFiniteError: a figure is not finite.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        run = distillation_of(self.model) if self.publish == "teacher" else None
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)  # each comes here
        if run is not None and not several:
            # the seed that a loader draws is not taken from training
            with torch.random.fork_rng(devices=[]), run.distillation.teacher.lent_to(run.student):
                metrics |= super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_teacher")
        require_finite(metrics, f"step {self.state.global_step}: evaluation")
        return metrics

    def get_eval_dataloader(self, eval_dataset=None):
        """As in Trainer, but `dataloader_drop_last` is for training: a gallery is evaluated whole."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """As in Trainer, with the time it took."""
        start = time.perf_counter()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.perf_counter() - start
        return samples

    @property
    def mean_data_wait(self) -> float:
        """Share of the training time spent waiting for batches, over all logs so far."""
        return self._total["waited"] / max(self._total["seconds"], 1e-9)

    @property
    def mean_images_per_second(self) -> float:
        """Training throughput over all logs so far."""
        return self._total["images"] / max(self._total["seconds"], 1e-9)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with the parts of the loss, and the speed since the last log."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._since
            for name, value in (("waited", self._waited), ("seconds", seconds), ("images", self._images)):
                self._total[name] += value
            logs.update(self._parts[True].pop())
            shares = {f"grad_share_{name[5:]}": float(share) for name, share in self._gradient_shares.items()}
            logs.update({name: share for name, share in shares.items() if math.isfinite(share)})  # fp16 overflows
            self._gradient_shares = {}
            if (run := distillation_of(self.model)) is not None:
                logs.update({name: value for name, value in run.measures().items() if name not in logs})
            logs["images_per_second"] = self._images / seconds
            logs["data_wait"] = self._waited / seconds
        for name in [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]:
            parts = self._parts[False].pop()
            logs.update({name.removesuffix("loss") + part: value for part, value in parts.items()})
        super().log(logs, start_time)
        self._waited, self._images, self._since = 0.0, 0, time.perf_counter()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in Trainer, after a look into every pickle of the checkpoint: one that could run code is refused."""
        refuse_unsafe_pickles(resume_from_checkpoint)
        with one_line_errors(resume_from_checkpoint, "checkpoint"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in Trainer, but tied weights are no missing ones: safetensors holds what is shared once."""
        held = self.model.state_dict(keep_vars=True)
        lacking = set(load_result.missing_keys)
        loaded = {id(tensor) for name, tensor in held.items() if name not in lacking}
        missing = [name for name in load_result.missing_keys if name not in held or id(held[name]) not in loaded]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """As in Trainer; a resumed run is the same run, or is refused.

        Raises:
            ValueError: a checkpoint that is not whole, or of another run; names what differs.
        """
        self._identity = self.run_identity()
        if not resume_from_checkpoint:
            return self._published(super().train(None, *args, **kwargs))
        if resume_from_checkpoint is True:
            folder = checkpoint_to_resume(self._output)
        else:
            folder = Path(resume_from_checkpoint)
        self.require_resumable(folder)
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        if 0 < max(state.max_steps, self.args.max_steps) <= state.global_step:
            self._take_finished(folder, folder.parent, state)
            return TrainOutput(state.global_step, 0.0, {})
        tell_lengthened(folder, self._identity)
        return self._published(super().train(str(folder), *args, **kwargs))

    def _published(self, trained: TrainOutput) -> TrainOutput:
        """At the end of training: the model takes the teacher's weights where these are to be published."""
        if self.publish == "teacher":
            state = next(c.state for c in self._distillation_callbacks() if c.state is not None)
            state.teacher.hand_to(unwrapped(self.model))
        return trained

    def run_identity(self) -> dict[str, Any]:
        """What the weights that this run ends with depend on: JSON, noted in each checkpoint."""
        arguments = {name: plain(getattr(self.args, name, None)) for name in FIXED_ARGUMENTS}
        if self.args.max_steps > 0:
            del arguments["num_train_epochs"]
        distillation = [
            {
                name: plain(getattr(callback, name, None))
                for name in ("target_guided", "feature_guided", "settings", "momentum")
            }
            for callback in self._distillation_callbacks()
        ]
        dataset = self.train_dataset
        return {
            **arguments,
            "processes": self.args.world_size,
            "model": describe_model(self.model),
            **({} if self.processing_class is None else describe_processor(self.processing_class)),
            "distillation": distillation or None,
            "data": describe_data(getattr(dataset, "pairs", dataset)),
            **plain(self.run_settings),
            **({} if self.publish == "student" else {"publish": self.publish}),
        }

    def require_resumable(self, folder: Path) -> None:
        """That a checkpoint is whole and of this run.

        Raises:
            ValueError: it is not; names the file or the settings.
        """
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: there is no such checkpoint")
        refuse_unsafe_pickles(folder)
        require_complete(folder)
        own = self._identity or self.run_identity()
        require_same_run(folder, own, may_begin=bool(self._distillation_callbacks()))
        rng = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{self.args.process_index}.pth"
        needed = [TRAINER_STATE_NAME]
        if self._is_plain:
            scaler = ["scaler.pt"] if self.accelerator.scaler is not None else []
            needed += ["optimizer.pt", "scheduler.pt", rng, *scaler]
        if lacking := [name for name in needed if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} cannot be resumed: it has no {', '.join(lacking)} (was it saved with save_only_model?)"
            )

    def is_finished(self, checkpoint: Path, output: Path) -> bool:
        """Whether the run that left this checkpoint has ended and written its model to `output`: says so, and takes
        model and state as they were at the end.

        Raises:
            ValueError: as `require_resumable`.
        """
        self.require_resumable(checkpoint)
        state = finished_state(output)
        lengthened = state is not None and self.args.max_steps > state.max_steps
        if state is None or lengthened or state.global_step < steps_of(checkpoint):
            return False
        self._take_finished(checkpoint, output, state)
        return True

    def _take_finished(self, checkpoint: Path, output: Path, state: TrainerState) -> None:
        """The model as the run has left it; no step is made."""
        logger.warning(
            "nothing to resume: the run in %s is finished, step %d of %d",
            *(output, state.global_step, state.max_steps),
        )
        self.state = state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        place = checkpoint if best is None else checkpoint.with_name(Path(best).name)  # wherever the folder is now
        if not hasattr(self.model, "peft_config") and any(output.glob("*.safetensors")):
            place = output
        self._load_from_checkpoint(str(place))
        if self.publish == "teacher" and place != output:
            take_weights(unwrapped(self.model), saved_teacher(place))

    @property
    def _output(self) -> Path:
        assert self.args.output_dir is not None  # the arguments have seen to it
        return Path(self.args.output_dir)

    @property
    def _is_plain(self) -> bool:
        """Whether the weights are whole on every worker."""
        return self.accelerator.distributed_type in (
            DistributedType.NO,
            DistributedType.MULTI_CPU,
            DistributedType.MULTI_GPU,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in Trainer; tells the distillation callbacks where the run resumes from."""
        super()._load_optimizer_and_scheduler(checkpoint)
        for callback in self._distillation_callbacks():
            callback.saved_by_trainer = True
            if checkpoint is not None:
                callback.resume_from = Path(checkpoint)

    def _distillation_callbacks(self) -> list[DistillationCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, DistillationCallback)]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything that Trainer writes, and the distillation state, into a partial folder; then one rename."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        names = [partial_path(run_dir).name]
        if self.args.world_size > 1:
            broadcast_object_list(names)
        partial = run_dir / names[0]
        if self.args.should_save:
            clean_leftovers(run_dir)
        self.accelerator.wait_for_everyone()
        try:
            with explained(folder):
                self._write_checkpoint(partial, folder)
        finally:
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run_dir, folder, self.args.save_total_limit, None if best is None else Path(best))

    def _write_checkpoint(self, partial: Path, folder: Path) -> None:
        """Write to `partial`, which becomes `folder`."""
        self.save_model(str(partial), _internal_call=True)
        if self.state.best_global_step:
            best = folder.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if best == folder or best.exists():
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
            run = distillation_of(self.model)
            if run is not None and self.args.should_save:
                save_state(partial, run.distillation)
        if self.args.should_save:
            self._note_callback_states()
            self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            note_run(partial, self._identity or self.run_identity())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            make_readable(partial)
            mark_complete(partial)
            place_checkpoint(partial, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in Trainer, whole or not at all, and by one worker alone (a sharded model is gathered by all)."""
        output = self._output if output_dir is None else Path(output_dir)
        if not self.args.should_save:
            super()._save(str(output), state_dict)
            return
        if is_partial(output):
            super()._save(str(output), state_dict)
            self._save_beside(output)
            return
        with staged_folder(output, "train", stale=("model*.safetensors*", "pytorch_model*")) as folder:
            self._save(str(folder), state_dict)

    def _save_beside(self, folder: Path) -> None:
        """Write what a subclass saves with the model into the folder."""

    def save_state(self) -> None:
        """As in Trainer, whole or not at all."""
        if self.is_world_process_zero():
            with staged_folder(self._output, "train") as folder:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _note_callback_states(self):
        noted: Any = self.state.stateful_callbacks  # by name, whatever its annotation says
        for stateful in [c for c in [*self.callback_handler.callbacks, self.control] if isinstance(c, ExportableState)]:
            name, state = type(stateful).__name__, stateful.state()
            if isinstance(noted.get(name), list):
                noted[name].append(state)
            else:
                noted[name] = state

"""A run that diverges stops at the step where it does, before its optimizer moves a weight, and on all workers alike.

`R2D2Trainer` and the distillation callbacks watch by themselves; `DivergenceCallback` does it in a stock Trainer, whose
own `logging_nan_inf_filter` would log the mean of earlier losses in place of NaN and train on.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ..inference.finite import LARGEST_WEIGHT, NotFiniteError, names_not_finite, require_finite
from ..model.distributed_r2d2 import world_size
from .running_means import LOGGED_PARTS

#: Steps that the loss scaling of float16 may skip one after another: from its largest scale down to one below 1.
MOST_SKIPPED = 40


class DivergenceGuard:
    """What is known of the optimizer step that is being made; reads the device once a step.

    Every micro-batch is noted by `note`, the step ends with `check`. All workers must call `check` and
    `check_weights` alike: where one of them finds something, all of them raise.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._skipped = 0

    def note(self, outputs: Any, loss: Tensor | None = None) -> None:
        """The loss of a micro-batch, and its parts in the model's outputs (a mapping, or anything else)."""
        held = outputs if isinstance(outputs, Mapping) else {}
        parts = {name: held.get(name) for name in LOGGED_PARTS}
        for name, value in {**parts, "loss": held.get("loss") if loss is None else loss}.items():
            if isinstance(value, Tensor):
                value = value.detach().float().sum()
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def check(
        self, step: int, parameters: Iterable[tuple[str, nn.Parameter]], norm: Tensor | None, scaled: bool, output: Any
    ) -> None:
        """The end of a step, its gradients being whole and not yet used.

        Args:
            step: the one that is being made, from 1.
            parameters: with their gradients.
            norm: of all of them; None: it is computed.
            scaled: float16's loss scaling skips steps whose gradients overflow: allowed `MOST_SKIPPED` times in a row.
            output: folder of the run's checkpoints, for the message.

        Raises:
            NotFiniteError: names the step, and which losses or gradients are not finite.
        """
        sums, self._sums = self._sums, {}
        trained = [(name, p) for name, p in parameters if p.grad is not None]
        gradients = [(name, p.grad) for name, p in trained if p.grad is not None]
        if norm is None and gradients:
            norm = torch.nn.utils.get_total_norm([gradient for _, gradient in gradients])
        device = next((tensor.device for tensor in (norm, *sums.values()) if tensor is not None), torch.device("cpu"))
        flags = torch.zeros(2, dtype=torch.bool, device=device)
        if sums:
            flags[0] = ~torch.stack([value.to(device) for value in sums.values()]).isfinite().all()
        if norm is not None:
            flags[1] = ~norm.detach().isfinite()
        bad_loss, overflow = self._agreed(flags).tolist()
        self._skipped = self._skipped + 1 if overflow else 0
        if not bad_loss and (not overflow or (scaled and self._skipped <= MOST_SKIPPED)):
            return
        what = [name for name, value in sums.items() if not bool(value.isfinite())]
        if weights := names_not_finite(trained):
            what.append(f"the weight {_first(weights)}")
        elif not what and (found := names_not_finite(gradients)):
            what.append(f"the gradient of {_first(found)}")
        self._stop(step, ", ".join(what), output)

    def check_weights(self, step: int, model: nn.Module, output: Any) -> None:
        """Before a checkpoint or a model is written.

        Raises:
            NotFiniteError: names the step and the weights.
        """
        # not `state_dict`, which gathers a sharded model
        statistics = [each for each in model.named_buffers() if each[0].endswith(("running_mean", "running_var"))]
        found = names_not_finite([*model.named_parameters(), *statistics], LARGEST_WEIGHT)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if self._agreed(torch.tensor(bool(found), device=device)):
            self._stop(step, f"the weight {_first(found)}" if found else "", output)

    @staticmethod
    def _agreed(found: Tensor) -> Tensor:
        """The same on all workers: what any of them has found."""
        if world_size() == 1:
            return found
        number = found.to(torch.int32)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return number.bool()

    @staticmethod
    def _stop(step: int, what: str, output: Any) -> None:
        if world_size() > 1:
            notes: list[str] = [""] * world_size()
            dist.all_gather_object(notes, what)
            found = [f"{note} (worker {worker})" for worker, note in enumerate(notes) if note]
            # gradients are the same everywhere: rather the one that knows where they come from
            found.sort(key=lambda note: note.startswith("the gradient"))
            what = found[0] if found else ""
        raise NotFiniteError(diverged(step, what or "the gradient", output))


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def diverged(step: int, what: str, output: Any) -> str:
    """The message of a run that has diverged."""
    from .checkpoints import last_complete

    last = None
    if output is not None and Path(output).is_dir():  # the stock Trainer marks none as complete
        last = last_complete(Path(output)) or get_last_checkpoint(output)
    kept = "there is no checkpoint of before" if last is None else f"the last good checkpoint is {last}"
    return (
        f"step {step}: the run has diverged, {what} being NaN, infinite or beyond all bounds; it stops here and "
        f"{kept}. Lower the learning rate, lengthen the warm-up, or train in float32 or bfloat16"
    )


class DivergenceCallback(TrainerCallback):
    """Stops a run of the stock Trainer at the step where it diverges (`R2D2Trainer` does so without it).

        trainer = Trainer(model=model, ..., callbacks=[DivergenceCallback()])

    Losses and gradients are checked before the optimizer uses them, weights before a checkpoint is written and at the
    end, metrics after an evaluation.

    Raises (while training):
        NotFiniteError: names the step and what is not finite.
    """

    def __init__(self) -> None:
        self._guard = DivergenceGuard()
        self._handle: Any = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Watch the model's outputs from here on."""
        self._stop_watching()
        self._guard = DivergenceGuard()
        self._handle = model.register_forward_hook(self._note)

    def _note(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self._guard.note(outputs)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Losses and gradients of the step."""
        scaled = getattr(optimizer, "scaler", None) is not None
        self._guard.check(state.global_step + 1, model.named_parameters(), None, scaled, args.output_dir)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Weights, where a checkpoint follows."""
        if control.should_save:
            self._guard.check_weights(state.global_step, model, args.output_dir)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Metrics."""
        require_finite(metrics or {}, f"step {state.global_step}: evaluation")

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Weights that the caller will save."""
        self._stop_watching()
        self._guard.check_weights(state.global_step, model, args.output_dir)

    def _stop_watching(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


__all__ = ["DivergenceCallback", "DivergenceGuard", "diverged"]

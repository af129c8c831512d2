"""The momentum teacher: an exponential moving average of the student's towers, projections and feature heads."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..jobs.checkpoints import STATE_FILE
from ..model.modeling_r2d2 import RANKER, normalize

#: Parts of the student that no objective asks the teacher for.
_STUDENT_ONLY = (*RANKER, "mlm_head")


@dataclass
class TeacherFeatures:
    """Of B local pairs, whole inputs: L2-normalised embeddings (B, D), and the cosines (B, K) that FgD compares, None
    unless asked for."""

    image_embeds: Tensor
    text_embeds: Tensor
    image_cosines: Tensor | None = None
    text_cosines: Tensor | None = None


class MomentumTeacher(nn.Module):
    """teacher ← m · teacher + (1 − m) · student, for towers, projections and feature heads (arXiv 2205.03860).

    It starts as a copy of the student, stays in evaluation mode (no dropout), needs no gradient, and is no submodule
    of the student: it enters neither optimizer nor DistributedDataParallel nor the model's checkpoint. Batch norms'
    running statistics are averaged as the weights are (ours): the student's own belong to weights that the teacher has
    not reached yet. Weights of less than 32 bits are averaged in float32, where (1 − m) of them is not rounded away. A
    student that FSDP2 shards is followed too: make its teacher before it is sharded; the teacher stays whole in every
    process.

    Args:
        student: an `R2D2ForPreTraining`, or another model with its tower methods.
        autocast: the dtype that the teacher computes in; None: that of its weights.
    """

    def __init__(self, student: nn.Module, autocast: torch.dtype | None = None):
        super().__init__()
        # Not copied: what only the student needs, and hooks, among them the one that calls the teacher.
        left_out: dict[int, Any] = {
            id(getattr(student, name)): nn.Identity() for name in _STUDENT_ONLY if hasattr(student, name)
        }
        left_out |= {
            id(hooks): OrderedDict[int, Any]() for hooks in (student._forward_hooks, student._forward_pre_hooks)
        }
        self.model: Any = copy.deepcopy(student, left_out).requires_grad_(False)
        low = [p.dtype for p in self.model.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
        self.autocast = autocast or (low[0] if low else None)
        self.model.float()
        self.eval()

    def train(self, mode: bool = True) -> "MomentumTeacher":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float):
        """After an optimizer step of the student: trained weights and running statistics by the moving average; what is
        no floating-point number (steps that a batch norm has counted, positions) as the student has it."""
        theirs = {**dict(student.named_parameters()), **dict(student.named_buffers())}
        # frozen ones too: a teacher that was not copied from this student differs in them
        trained = [(ours, theirs[name]) for name, ours in self.model.named_parameters()]
        buffers = [(ours, theirs[name]) for name, ours in self.model.named_buffers()]
        averaged = [*trained, *(pair for pair in buffers if pair[0].is_floating_point())]
        if averaged:
            torch._foreach_lerp_([t for t, _ in averaged], [_whole(s).to(t.dtype) for t, s in averaged], 1 - momentum)
        if copied := [pair for pair in buffers if not pair[0].is_floating_point()]:
            torch._foreach_copy_([t for t, _ in copied], [s for _, s in copied])

    def hand_to(self, model: nn.Module):
        """Write what is averaged here into a model of the student's kind: it then has the teacher's towers,
        projections, temperature and running statistics, and keeps its own ranker."""
        take_weights(model, self.model.state_dict())

    @contextlib.contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Within this context a model has the teacher's weights, as by `hand_to`; then its own again, bit for bit."""
        held = model.state_dict()
        kept = {name: held[name].clone() for name in self.model.state_dict()}
        self.hand_to(model)
        try:
            yield
        finally:
            take_weights(model, kept)

    @torch.no_grad()
    def encode(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        feature_guided: bool = False,
        chunk: int | None = None,
        images: Mapping[str, Tensor] | None = None,
    ) -> TeacherFeatures:
        """The teacher's view of B pairs, `chunk` pairs at a time (None: all at once).

        Args:
            feature_guided: whether FgD compares them.
            images: what else the image tower takes of them, see `more_of_images`.
        """
        parts: list[tuple[Any, ...]] = []
        device = pixel_values.device.type
        precision = torch.autocast(device, self.autocast) if self.autocast else contextlib.nullcontext()
        for start in range(0, len(input_ids), chunk or len(input_ids)):
            rows = slice(start, start + (chunk or len(input_ids)))
            with precision:
                more = {name: each[rows] for name, each in (images or {}).items()}
                encoded = self.model.get_image_features(pixel_values[rows], return_dict=True, **more)
                mask = None if attention_mask is None else attention_mask[rows]
                texts = self.model.get_text_features(
                    input_ids[rows],
                    mask,
                    token_type_ids=None if token_type_ids is None else token_type_ids[rows],
                    return_dict=True,
                )
                states = encoded.last_hidden_state, texts.last_hidden_state
                compared = self.model.compared_features(*states, mask) if feature_guided else (None, None)
            parts.append((normalize(encoded.pooler_output.float()), normalize(texts.pooler_output.float()), *compared))
        if len(parts) == 1:
            return TeacherFeatures(*parts[0])
        columns: list[Any] = [None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)]
        return TeacherFeatures(*columns)


def more_of_images(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a batch goes to a model's image tower beside the pixels (BriVL's boxes)."""
    names = getattr(model, "image_inputs", ("pixel_values",))[1:]
    return {name: batch[name] for name in names if batch.get(name) is not None}


@torch.no_grad()
def take_weights(model: nn.Module, weights: Mapping[str, Tensor]):
    """Copy tensors by name into a model, whose other ones stay as they are.

    Raises:
        ValueError: a model that is sharded.
    """
    held = model.state_dict()
    if any(isinstance(held[name], DTensor) for name in weights):
        raise ValueError("the teacher is whole in every process and cannot be handed to a sharded model: unshard it")
    for name, value in weights.items():
        held[name].copy_(value)


def saved_teacher(folder: Path) -> dict[str, Tensor]:
    """The teacher's weights by name in a checkpoint's folder, as `take_weights` takes them."""
    prefix = "teacher.model."
    state = load_file(folder / STATE_FILE)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

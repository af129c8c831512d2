"""What conversions of official checkpoint files share: reading, the report, the model that the tensors make."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference.loading_errors import LoadingError
from ..inference.pickles import load_tensors


class CheckpointError(ValueError):
    """The file is no official checkpoint, or not all of it fits."""


@dataclass
class ConversionReport:
    """What became of every tensor of an official checkpoint.

    Args:
        used: official name -> name in the model.
        unused: official name -> why nothing reads it.
        unknown: names that no official checkpoint has (only with `allow_unknown`).
        has_head: whether the MLM head was taken.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    has_head: bool = False

    def unused_by_reason(self) -> dict[str, list[str]]:
        """Reason -> the official names it holds for, unknown tensors included."""
        grouped: dict[str, list[str]] = {}
        for name, reason in self.unused.items():
            grouped.setdefault(reason, []).append(name)
        if self.unknown:
            grouped["unknown tensor, left out as allowed"] = list(self.unknown)
        return grouped

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.unused) + len(self.unknown)} not used"]
        for reason, names in self.unused_by_reason().items():
            lines.append(f"  {reason}:")
            lines.extend(f"    {name}" for name in names)
        return "\n".join(lines)


def read_checkpoint(path: str | PathLike) -> dict[str, Tensor]:
    """The state dict of an official checkpoint file: name -> tensor on the CPU, mapped from disk where possible.

    Raises:
        CheckpointError: unreadable, or with objects beyond tensors and plain Python values. FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not an official checkpoint file (a converted one loads by R2D2Model.from_pretrained)"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = load_tensors(path)
    except LoadingError as error:
        raise CheckpointError(str(error)) from error
    state_dict = content
    for key in ("model", "state_dict", "learnable"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state_dict = content[key]
            break
    if not isinstance(state_dict, Mapping) or not any(isinstance(v, Tensor) for v in state_dict.values()):
        found = f"keys {listed(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} is not an R2D2 checkpoint: expected a state dict, bare or under the key 'model', found {found}"
        )
    other = [str(name) for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(f"{path}: these entries of the state dict are not tensors: {listed(other)}")
    stripped = {str(name).removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if len(stripped) != len(state_dict):
        raise CheckpointError(f"{path}: some tensors occur twice, with and without the prefix 'module.'")
    return stripped


#: So many misshapen tensors are named.
_SHOWN = 8


@dataclass(frozen=True)
class StoredOtherwise:
    """Tensors that a checkpoint lays out otherwise than a model.

    Args:
        names: of the tensors.
        shape: of such a tensor in the checkpoint, from that of the model's.
        arranged: the tensor as the model has it, from the checkpoint's.
    """

    names: re.Pattern[str]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    arranged: Callable[[Tensor], Tensor]


def rename_tensors(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    names_of: Callable[[str], tuple[str, ...]],
    stored: StoredOtherwise,
    report: ConversionReport,
    allow_unknown: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of a model, every one that it needs, each of its shape.

    Args:
        state_dict: what of the checkpoint is to be used.
        expected: the model's names and shapes.
        names_of: the model's names of a tensor; several where it holds what the model keeps apart, stacked along its
            first dimension.
        stored: which tensors the checkpoint lays out otherwise than the model, and how.
        report: gets what was used, and what is unknown.
        allow_unknown: list tensors of unknown names instead of refusing them.

    Raises:
        CheckpointError: missing, misshapen or unknown tensors, or two that are the same; names them.
    """
    converted: dict[str, Tensor] = {}
    problems: list[str] = []
    misshapen: list[str] = []
    origin: dict[str, str] = {}
    for name, tensor in state_dict.items():
        targets = names_of(name)
        if not targets or any(target not in expected for target in targets):
            report.unknown.append(name)
            continue
        if again := next((origin[target] for target in targets if target in origin), None):
            problems.append(f"{name} and {again} are the same tensor of the model: which one is meant?")
            continue
        origin.update(dict.fromkeys(targets, name))
        report.used[name] = ", ".join(targets)
        wanted = expected[targets[0]]
        whole = (wanted[0] * len(targets), *wanted[1:]) if wanted else ()
        otherwise = stored.names.fullmatch(name)
        shape = stored.shape(whole) if otherwise else whole
        counts = targets[0].endswith("num_batches_tracked")
        if tuple(tensor.shape) != shape or tensor.is_floating_point() == counts:
            misshapen.append(f"misshapen tensor: {name} is {described(tensor)}, expected {shape}")
            continue
        own = stored.arranged(tensor) if otherwise else tensor
        converted.update(zip(targets, own.chunk(len(targets)) if wanted else [own], strict=True))
    if missing := [name for name in expected if name not in origin]:
        problems.append(f"no tensor of the checkpoint gives {listed(missing)}")
    if report.unknown and not allow_unknown:
        problems.append(
            f"unknown tensors: {listed(report.unknown)} (allow_unknown=True, --allow-unknown: leave them out)"
        )
    problems += misshapen[:_SHOWN]
    if more := misshapen[_SHOWN:]:
        problems.append(f"… and {len(more)} more misshapen tensors")
    if problems:
        raise CheckpointError("\n".join(problems))
    return converted


def model_of(kind: Any, config: Any, tensors: Mapping[str, Tensor], path: str | PathLike) -> Any:
    """The model of a class, in evaluation mode and float32, that tensors make whose names and shapes have been checked.

    Raises:
        CheckpointError: they do not fit all the same.
    """
    # a copy: the file's own tensors may be mapped from disk
    own = {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    model, info = kind.from_pretrained(
        None, config=config, state_dict=own, dtype=torch.float32, output_loading_info=True
    )
    if left := {what: names for what, names in info.items() if names}:
        raise CheckpointError(f"{path}: {left}")
    return model


def described(tensor: Tensor) -> str:
    """Shape, and type where it is not of floating point."""
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def listed(names: Iterable[str], limit: int = 30) -> str:
    """The names, the first `limit` of them where there are more."""
    names = list(names)
    more = f", … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

"""What conversions of official checkpoint files share: reading, the report, the model that the tensors make."""

from collections.abc import Iterable, Mapping
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
    for key in ("model", "state_dict"):
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


def model_of(kind: Any, config: Any, tensors: Mapping[str, Tensor], path: str | PathLike) -> Any:
    """The model of a class, in evaluation mode and float32, that tensors make whose names and shapes have been checked.

    Raises:
        CheckpointError: they do not fit all the same.
    """
    # a copy: the file's own tensors may be mapped from disk
    own = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
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

"""Nothing that is not finite goes on silently: weights, results and JSON are checked here, and refused by name."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

#: A weight beyond it has a square that overflows in float32: norms become infinite, and what is divided by them 0.
LARGEST_WEIGHT = 1e18


class NotFiniteError(ValueError, FloatingPointError):
    """A loss, a weight or a result is NaN or infinite."""


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any shape and type holds neither NaN nor infinity; True where its type has none."""
    return not names_not_finite([("", tensor)])


def names_not_finite(tensors: Iterable[tuple[str, Tensor]], largest: float = sys.float_info.max) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity, in their order; memory is read once.

    Args:
        tensors: names and tensors on any device, of any type; integers and empty ones are finite.
        largest: absolute value beyond which a number counts as infinite; `LARGEST_WEIGHT` of weights.
    """
    found: list[str] = []
    norms: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor, Tensor]]] = {}
    for name, tensor in tensors:
        floating = tensor.is_floating_point() or tensor.is_complex()
        if not floating or not tensor.numel() or tensor.device.type == "meta":
            continue
        tensor = tensor.detach()
        if hasattr(tensor, "to_local"):  # sharded: this worker's part
            tensor = tensor.to_local()
        if tensor.element_size() == 1:  # float8 has no norm
            tensor = tensor.float()
        # no number is larger than the norm, and a NaN makes it one
        norm = torch.linalg.vector_norm(tensor)
        if norm.device.type == "cpu":  # nothing to wait for, and the tensor may be one of a file's, read in turn
            if not float(norm) <= largest and _exceeds(tensor, largest):
                found.append(name)
            continue
        norms.setdefault((norm.device, norm.dtype), []).append((name, tensor, norm))
    for entries in norms.values():  # one synchronisation a device and type
        values = torch.stack([norm for _, _, norm in entries]).tolist()
        for (name, tensor, _), value in zip(entries, values, strict=True):
            if not value <= largest and _exceeds(tensor, largest):
                found.append(name)
    return found


def _exceeds(tensor: Tensor, largest: float) -> bool:
    """Exactly: a norm may overflow where every number is finite."""
    return not float(tensor.abs().max()) <= largest


def require_finite_weights(weights: nn.Module | Mapping[str, Tensor], place: str | PathLike) -> None:
    """Refuse weights (a module's parameters and buffers, or tensors by name) that are not finite.

    Args:
        place: what holds them, for the message: a folder, a file or a Hub name.

    Raises:
        NotFiniteError: names the place and the first of them.
    """
    held = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = [(name, value) for name, value in held.items() if isinstance(value, Tensor)]
    if found := names_not_finite(tensors, LARGEST_WEIGHT):
        raise NotFiniteError(_weights_refused(place, found, len(tensors)))


def _weights_refused(place: str | PathLike, found: list[str], total: int) -> str:
    return (
        f"{place}: {_counted(len(found), total, 'weights')} not finite (NaN, infinity or beyond {LARGEST_WEIGHT:g}), "
        f"such as {found[0]}: the run that made them diverged, or the file is damaged. Take an earlier checkpoint, or "
        "the original file"
    )


def require_finite_file(path: str | PathLike) -> None:
    """`require_finite_weights` of a safetensors file, one tensor in memory at a time.

    Raises:
        NotFiniteError: names the file and the first tensor.
        ValueError: not such a file, or a torn one.
    """
    try:
        with safe_open(path, framework="pt") as held:
            names = list(held.keys())
            found = names_not_finite(((name, held.get_tensor(name)) for name in names), LARGEST_WEIGHT)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or was cut short: {error}") from error
    if found:
        raise NotFiniteError(_weights_refused(path, found, len(names)))


def require_finite(values: Any, what: str, names: Sequence[Any] | None = None) -> None:
    """Refuse results that are not finite.

    Args:
        values: a number, an array or a tensor; its first dimension is counted, as rows. Or a mapping of named numbers.
        what: what they are, for the message: "match probabilities of MODEL".
        names: of the rows.

    Raises:
        NotFiniteError: says how many are not finite, and which is the first.
    """
    if isinstance(values, Mapping):
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float | np.floating)}
        if found := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise NotFiniteError(f"{what}: {found[0]} is {values[found[0]]}, no finite number{_and_others(len(found))}")
        return
    if isinstance(values, Tensor):
        if is_finite(values):
            return
        rows = values.detach().isfinite().reshape(len(values) if values.dim() else 1, -1).all(dim=1).cpu().numpy()
    else:
        values = np.asarray(values)
        if values.dtype.kind not in "fc" or np.isfinite(values).all():
            return
        rows = np.isfinite(values).reshape(len(values) if values.ndim else 1, -1).all(axis=1)
    bad = np.flatnonzero(~rows)
    first = "" if len(rows) == 1 and names is None else f", first {bad[0] if names is None else names[bad[0]]}"
    raise NotFiniteError(
        f"{what}: {_counted(len(bad), len(rows), 'results')} not finite (NaN or infinity){first}. The model's weights "
        "are damaged, or its numbers overflow in this precision: try float32"
    )


def to_json(value: Any, what: str | PathLike, **options: Any) -> str:
    """`json.dumps(value, ensure_ascii=False, **options)`, which never writes NaN or Infinity: they are no JSON.

    Args:
        what: the file or the answer, for the message.

    Raises:
        NotFiniteError: names the entry.
    """
    try:
        return json.dumps(value, **{"ensure_ascii": False, **options}, allow_nan=False)
    except ValueError:
        found = next(_entries_not_finite(value), None)
        if found is None:
            raise
        raise NotFiniteError(f"{what}: {found[0] or 'the value'} is {found[1]}, which is no finite number") from None


def _entries_not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _entries_not_finite(entry, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            yield from _entries_not_finite(entry, f"{path}[{place}]")


def _counted(found: int, total: int, what: str) -> str:
    return f"{found:,} of {total:,} {what} {'is' if found == 1 else 'are'}"


def _and_others(count: int) -> str:
    return "" if count == 1 else f" ({count - 1} more are not)"


__all__ = [
    "LARGEST_WEIGHT",
    "NotFiniteError",
    "is_finite",
    "names_not_finite",
    "require_finite",
    "require_finite_file",
    "require_finite_weights",
    "to_json",
]

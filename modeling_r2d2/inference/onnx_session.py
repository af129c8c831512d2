"""onnxruntime sessions: opened with a number of threads, fed with tensors."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def require_onnx(*names: str) -> None:
    """Raise `ImportError` that says what to install, unless the packages are there; default: all for an export."""
    missing = [n for n in names or ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} not installed: pip install 'modeling-r2d2[onnx]'")


def open_session(path: Path, threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """An `onnxruntime.InferenceSession`.

    Raises:
        ValueError: a provider that this onnxruntime does not have, which it would replace by the CPU with a warning.
        ImportError: onnxruntime is not installed.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    lacking = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if lacking:
        raise ValueError(
            f"this onnxruntime has no {', '.join(lacking)}; it has {', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads would take the processor from torch, which works between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=list(providers))


def feed(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Inputs as onnxruntime takes them, without a copy where they lie on the CPU."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


__all__ = ["feed", "open_session", "require_onnx"]

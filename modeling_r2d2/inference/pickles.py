"""Files of torch that hold tensors and plain values, and those that could run code."""

import argparse
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import torch

from .loading_errors import LoadingError, first_line

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl")


def refuse_unsafe_pickles(folder: str | PathLike) -> None:
    """Look into every pickle of a checkpoint before a library does: tensors and plain values, or it is refused.

    Optimizers, schedules and random states are pickles by their libraries' choice; what `training_args.bin` holds is
    read by nothing.

    Raises:
        ValueError: a file that could run code, or is no pickle at all; names it.
    """
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in _PICKLE_SUFFIXES and path.name != "training_args.bin" and path.is_file():
            load_tensors(path)


def load_tensors(path: str | PathLike) -> Any:
    """What a file of torch holds, on the CPU, mapped from disk where possible: tensors, plain values, numpy's arrays
    and `argparse.Namespace`, which old training scripts save beside the weights.

    Raises:
        LoadingError: it holds something else, which could run code when it is loaded; or it is damaged.
        OSError: no such file.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a file of other bytes makes the unpickler raise anything, IndexError for one
        if names := _code_of(path, error):
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise LoadingError(
                f"{path} holds objects beyond tensors and plain values ({listed}), and loading those could run code of "
                "the file: it is not loaded; get a file of its tensors alone"
            ) from error
        raise LoadingError(f"{path} cannot be read as a torch checkpoint: {first_line(error)}") from error


def _harmless() -> list[Any]:
    """What may be made of a pickle beside torch's own list: random states and settings hold it, and it runs nothing."""
    scalar = numpy.float64(0).__reduce__()[0]
    reconstruct = numpy.zeros(0).__reduce__()[0]
    kinds = {type(numpy.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "u4", "u8", "?")}
    return [numpy.ndarray, numpy.dtype, *kinds, scalar, reconstruct, argparse.Namespace]


def _code_of(path: str | PathLike, error: Exception) -> list[str]:
    """The classes and functions of a pickle that are not on the list."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip archive: the message itself names the first one
        return re.findall(r"GLOBAL (\S+)", str(error))


__all__ = ["load_tensors", "refuse_unsafe_pickles"]

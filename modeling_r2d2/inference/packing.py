"""States of towers in the precision to keep: as they are, in half the size, or in a quarter."""

from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_SCALE = ".scale"


def pack(tensors: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Tensors (I, …, D) in the precision to keep; int8 adds `<name>.scale` (I, …), largest magnitude / 127.

    Raises:
        ValueError: a value beyond float16's range of ±65504.
    """
    packed = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if precision == "int8":
            scale = tensor.float().abs().amax(dim=-1) / 127
            # a token of zeros stays zero
            divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
            packed[name] = (tensor.float() / divisor).round_().to(torch.int8)
            packed[name + _SCALE] = scale
            continue
        packed[name] = tensor.to(getattr(torch, precision)).contiguous()
        if precision == "float16" and bool(torch.isinf(packed[name]).any()):
            raise ValueError(f"the model's {name} exceed float16's range: keep them as float32 or int8")
    return packed


def unpack(tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """What `pack` made, as tensors of `dtype` on `device`; int8 within half a scale of the original."""
    unpacked = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            continue
        unpacked[name] = tensor.to(device, dtype)
        if tensor.dtype == torch.int8:
            unpacked[name].mul_(tensors[name + _SCALE].to(device, dtype).unsqueeze(-1))
    return unpacked


__all__ = ["PRECISIONS", "Precision", "pack", "unpack"]

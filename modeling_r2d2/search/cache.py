"""What of a picture is kept for the ranker, in which precision.

| keep | kept for each picture | a ViT-B/16 at 224 px, float16 |
|---|---|---:|
| none | nothing: the image tower reads the candidates' files again at every search | 0 |
| states | the tower's states | 0.3 MB |
| keys_values | also the image-text encoder's first states, and all keys and values of the text-image encoder | 3.6 MB |
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Keep = Literal["none", "states", "keys_values"]
Precision = Literal["float32", "float16", "int8"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_SCALE = ".scale"


@dataclass(frozen=True)
class CacheOptions:
    """What an index keeps of every picture for the ranker.

    Args:
        keep: "none": pictures are encoded again when they are candidates; "states": the image tower's states; or
            "keys_values": also the text-image encoder's keys and values, which are larger and save its projections.
        precision: float32, float16 (half the size) or int8 (a quarter, one scale a token).

    Raises:
        ValueError: another name.
    """

    keep: Keep = "none"
    precision: Precision = "float16"

    def __post_init__(self):
        if self.keep not in ("none", "states", "keys_values"):
            raise ValueError(f"keep is {self.keep!r}; use 'none', 'states' or 'keys_values'")
        if self.precision not in _DTYPES:
            raise ValueError(f"precision is {self.precision!r}; use {', '.join(_DTYPES)}")


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
        packed[name] = tensor.to(_DTYPES[precision]).contiguous()
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

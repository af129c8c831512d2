"""The weights of the full-size record, made by rule: a tensor's name alone says what it holds."""

import json
import zlib

import numpy as np
import torch
from torch import Tensor

from tests.brivl.golden import GOLDEN


def weights_by_rule(prefixes: tuple[str, ...] = ("imgencoder.", "textencoder.")) -> dict[str, Tensor]:
    """Every tensor of `full/keys_full.json` whose name begins so."""
    keys = json.loads((GOLDEN / "full" / "keys_full.json").read_text(encoding="utf-8"))["keys"]
    variances = json.loads((GOLDEN / "full" / "bn_var.json").read_text(encoding="utf-8"))
    return {
        name: _tensor(name, shape, dtype, variances)
        for name, (shape, dtype, _) in keys.items()
        if name.startswith(prefixes)
    }


def _tensor(name: str, shape: list[int], dtype: str, variances: dict[str, float]) -> Tensor:
    if dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    count = int(np.prod(shape))
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(count).astype(np.float32)
    n = torch.from_numpy(drawn).view(shape)
    kind = name.rpartition(".")[2]
    if kind == "running_var":
        return variances[name] * torch.exp(0.2 * n)
    if kind == "running_mean":
        return 0.1 * variances[name.replace("running_mean", "running_var")] ** 0.5 * n
    if len(shape) == 1 and kind == "weight":
        return 1 + 0.1 * n
    if len(shape) == 1:  # a bias
        return 0.3 / count**0.5 * n if ".learnable." in name and ".norm" not in name else 0.1 * n
    if ".embeddings." in name:
        return n if ".word_embeddings." in name else 0.2 * n
    fan_in = int(np.prod(shape[1:]))
    if len(shape) == 4 and shape[1] > 1:
        n = n - n.mean(dim=(1, 2, 3), keepdim=True)
    half = 0.5 if name.endswith(("attention.output.dense.weight", "out_proj.weight")) else 1.0
    return half * n / fan_in**0.5

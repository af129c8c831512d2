"""Batch norms, which make a batch of images more than the sum of its rows. This file travels to the Hub."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm within a model, by its name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}


@contextmanager
def constant_running_statistics(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Within this context batch norms normalise as ever but note nothing of what they see."""
    noting = [norm for norm in norms if norm.track_running_stats]
    for norm in noting:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in noting:
            norm.track_running_stats = True


__all__ = ["batch_norms", "constant_running_statistics"]

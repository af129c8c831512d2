"""How strongly each objective pulls at the towers: `grad_share_<objective>` of a run's log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.distributed_r2d2 import world_size


@contextmanager
def tower_states(model: Any) -> Iterator[list[Tensor]]:
    """Within this context the list fills with what the towers of a model give: the last hidden states of whole and of
    masked images and texts. Whatever an objective changes in a tower's weights, it changes by way of these."""
    states: list[Tensor] = []
    handles = [
        tower.register_forward_hook(lambda module, arguments, output: states.append(output.last_hidden_state))
        for tower in (model.vision_model, model.text_model)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def gradient_shares(losses: Mapping[str, Tensor], states: list[Tensor]) -> dict[str, Tensor]:
    """n_k / Σ_j n_j with n_k = ‖∂L_k/∂H‖₂, H all the states of a step over all workers: scalars by objective.

    The share is measured where the objectives enter the towers, not at the weights: there, what the tokens of a batch
    ask for adds up or cancels, and the clipped gradient is divided otherwise. To go on to the weights would take a
    backward pass of both towers for every objective.

    The graph is kept, so that the backward pass of the step can follow; no gradient is left anywhere. Over several
    workers all must call it.

    Args:
        losses: the objectives, each times its weight.
        states: of `tower_states`; those of a frozen tower are left out.
    """
    trained = [each for each in states if each.requires_grad]
    squares = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        squares.append(sum(((each.float() ** 2).sum() for each in found if each is not None), loss.new_zeros(())))
    both = torch.stack(squares)
    if world_size() > 1:
        dist.all_reduce(both)
    norms = both.sqrt()
    return dict(zip(losses, (norms / norms.sum()).unbind(), strict=True))


__all__ = ["gradient_shares", "tower_states"]

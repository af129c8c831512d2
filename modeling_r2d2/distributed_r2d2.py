"""Gathering over the workers of a run, with gradient, and sums for exact global means.

Without an initialised process group (or with one process) every function returns its input unchanged.
"""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """This worker's number; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Concatenation over the workers; the gradient of a row is summed over the workers that used it."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = tensor.shape[0]
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.narrow(0, process_index() * ctx.rows, ctx.rows)


def _all_gather(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    gathered = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather(list(gathered.chunk(world_size())), tensor)
    return gathered


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) of every worker -> (W·B, ...) in rank order; differentiable where `tensor` is.

    Every worker must hold the same number of rows. The backward pass sums over the workers, so the average
    that DistributedDataParallel takes afterwards is the gradient of the mean of the workers' losses.
    """
    if world_size() == 1:
        return tensor
    return _AllGather.apply(tensor) if tensor.requires_grad else _all_gather(tensor)


def gather_padded(tensor: torch.Tensor) -> torch.Tensor:
    """`gather` for (B, L, ...) whose L differs between workers: zero-padded to the longest."""
    if world_size() == 1:
        return tensor
    length = torch.tensor(tensor.shape[1], device=tensor.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    missing = int(length) - tensor.shape[1]
    if missing:
        padding = tensor.new_zeros((tensor.shape[0], missing, *tensor.shape[2:]))
        tensor = torch.cat([tensor, padding], dim=1)
    return gather(tensor)


def global_mean(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """total / weight, normalised by the mean weight over the workers.

    Averaged over the workers (as DistributedDataParallel averages gradients) this is exactly
    Σ_workers total / Σ_workers weight. Zero weight everywhere gives 0.
    """
    weight = weight.detach().clone()
    if world_size() > 1:
        dist.all_reduce(weight)
        weight = weight / world_size()
    return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

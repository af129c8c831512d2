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
        # every worker needs the sum of its own rows alone: exchange those, and add
        gradient = gradient.contiguous()
        arrived = torch.empty_like(gradient)
        dist.all_to_all_single(arrived, gradient)
        return arrived.view(world_size(), ctx.rows, *gradient.shape[1:]).sum(dim=0)


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


class _AllToAll(torch.autograd.Function):
    """Rows to and from every worker, by counts; the gradient goes the way back."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        ctx.counts = sent, received
        return _all_to_all(rows, sent, received)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        sent, received = ctx.counts
        return _all_to_all(gradient, received, sent), None, None


def _all_to_all(rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
    return arrived


class RowExchange:
    """Which rows of other workers this one needs, each once, and which of its own they need; see `exchange_rows`.

    Args:
        index: (B,) int64 into the rows of all workers, B per worker: what this worker needs.
        needed: (W, B), the `index` of every worker.

    Attributes:
        position: (B,) int64, where each needed row is in "local rows, then the fetched ones".
    """

    def __init__(self, index: torch.Tensor, needed: torch.Tensor):
        batch, own = len(index), process_index()
        away = index // batch != own
        wanted, inverse = index[away].unique(return_inverse=True)  # sorted, so by worker
        self.position = index - own * batch
        self.position[away] = batch + inverse
        self.received = torch.bincount(wanted // batch, minlength=world_size()).tolist()
        worker = torch.arange(world_size(), device=index.device)[:, None]
        asked = (needed // batch == own) & (worker != own)
        keys = (worker * batch + needed - own * batch)[asked].unique()  # by asking worker, then by row
        self.rows = keys % batch
        self.sent = torch.bincount(keys // batch, minlength=world_size()).tolist()


def exchange_rows(*requests: tuple[RowExchange, list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The tensors of every request, (B, …) each, with the fetched rows behind them: (B + fetched, …).

    All travels in one message; differentiable. Every worker must call it with tensors of the same row shapes, and
    all tensors must be of one dtype.
    """
    leaving, widths = [], []
    for exchange, tensors in requests:
        rows = torch.cat([t.index_select(0, exchange.rows).flatten(1) for t in tensors], dim=1)
        leaving.append(rows.split(exchange.sent))
        widths.append(rows.shape[1])
    workers = range(world_size())
    sizes = [[e.received[w] * width for (e, _), width in zip(requests, widths, strict=True)] for w in workers]
    message = torch.cat([part[w].flatten() for w in workers for part in leaving])
    sent = [sum(part[w].numel() for part in leaving) for w in workers]
    arrived = _AllToAll.apply(message, sent, [sum(of_worker) for of_worker in sizes])
    pieces = arrived.split([size for of_worker in sizes for size in of_worker])
    results = []
    for number, ((_, tensors), width) in enumerate(zip(requests, widths, strict=True)):
        fetched = torch.cat(pieces[number :: len(requests)]).view(-1, width).split([t[0].numel() for t in tensors], 1)
        results.append([torch.cat([t, f.reshape(-1, *t.shape[1:])]) for t, f in zip(tensors, fetched, strict=True)])
    return results


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

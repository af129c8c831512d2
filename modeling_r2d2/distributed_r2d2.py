"""Gathering over the workers of a run, with gradient, and sums for exact global means.

Without an initialised process group (or with one process) every function returns its input unchanged.
"""

import math

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


class _GatherWithIds(torch.autograd.Function):
    """`_AllGather` of rows with int64 ids as bits beside them."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.rows = len(rows)
        bits = ids.to(torch.int64).contiguous().unsqueeze(1).view(rows.dtype)
        gathered = _all_gather(torch.cat([rows, bits], dim=1))
        width = rows.shape[1]
        all_ids = gathered[:, width:].contiguous().view(torch.int64).squeeze(1)
        ctx.mark_non_differentiable(all_ids)
        return gathered[:, :width].contiguous(), all_ids

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _AllGather.backward(ctx, gradient), None


def gather_with_ids(tensor: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`gather` of (B, D) rows and of their int64 ids (B,), in one message: the ids travel as bits beside the rows."""
    return (tensor, ids) if world_size() == 1 else _GatherWithIds.apply(tensor, ids)


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
    exchanges = [exchange for exchange, tensors in requests for _ in tensors]
    together = iter(_ExchangeRows.apply(exchanges, *(t for _, tensors in requests for t in tensors)))
    return [[next(together) for _ in tensors] for _, tensors in requests]


class _ExchangeRows(torch.autograd.Function):
    """`exchange_rows`; the gradients of fetched rows go home and are added to those of the local ones."""

    @staticmethod
    def forward(ctx, exchanges: list[RowExchange], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.exchanges, ctx.local = exchanges, len(tensors[0])
        message, leaving = _blocks(tensors, [e.sent for e in exchanges])
        for exchange, tensor, blocks in zip(exchanges, tensors, leaving, strict=True):
            for rows, block in zip(exchange.rows.split(exchange.sent), blocks, strict=True):
                torch.index_select(tensor, 0, rows, out=block)
        arrived, blocks_in = _blocks(tensors, [e.received for e in exchanges])
        _send(message, leaving, arrived, blocks_in)
        outputs = tuple(torch.cat([t, *blocks]) for t, blocks in zip(tensors, blocks_in, strict=True))
        ctx.mark_non_differentiable(*(o for o, t in zip(outputs, tensors, strict=True) if not t.requires_grad))
        return outputs

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exchanges, local = ctx.exchanges, ctx.local
        message, leaving = _blocks(gradients, [e.received for e in exchanges])
        for exchange, gradient, blocks in zip(exchanges, gradients, leaving, strict=True):
            for rows, block in zip(gradient[local:].split(exchange.received), blocks, strict=True):
                block.copy_(rows)
        arrived, blocks_in = _blocks(gradients, [e.sent for e in exchanges])
        _send(message, leaving, arrived, blocks_in)
        results = []
        for exchange, gradient, blocks in zip(exchanges, gradients, blocks_in, strict=True):
            results.append(gradient[:local].clone())
            for rows, block in zip(exchange.rows.split(exchange.sent), blocks, strict=True):
                results[-1].index_add_(0, rows, block)
        return None, *results


def _blocks(tensors: tuple, counts: list[list[int]]) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """An empty message that holds, worker by worker, counts[k][worker] rows of every tensor k; and those places in
    it, by tensor and worker."""
    widths = [math.prod(t.shape[1:]) for t in tensors]
    sizes = [n * width for of_worker in zip(*counts, strict=True) for n, width in zip(of_worker, widths, strict=True)]
    message = tensors[0].new_empty(sum(sizes))
    pieces = message.split(sizes)
    return message, [
        [piece.view(-1, *t.shape[1:]) for piece in pieces[k :: len(tensors)]] for k, t in enumerate(tensors)
    ]


def _send(message: torch.Tensor, leaving: list, arrived: torch.Tensor, arriving: list):
    def sizes(blocks: list) -> list[int]:
        return [sum(block.numel() for block in of_worker) for of_worker in zip(*blocks, strict=True)]

    dist.all_to_all_single(arrived, message, sizes(arriving), sizes(leaving))


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

"""Gathering over the workers of a run, with gradient, and sums for exact global means.

Without an initialized process group (or with one process) every function returns its input unchanged.
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
    if hasattr(dist, "all_gather_single"):  # its name from torch 2.13 on
        dist.all_gather_single(gathered, tensor)
    else:
        dist.all_gather_into_tensor(gathered, tensor)
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
        bits = ids.to(torch.int64).reshape(len(rows), -1).view(rows.dtype)
        gathered = _all_gather(torch.cat([rows, bits], dim=1))
        width = rows.shape[1]
        all_ids = gathered[:, width:].contiguous().view(torch.int64).view(-1, *ids.shape[1:])
        ctx.mark_non_differentiable(all_ids)
        return gathered[:, :width].contiguous(), all_ids

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _AllGather.backward(ctx, gradient), None


def gather_with_ids(tensor: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`gather` of (B, D) rows and of their int64 ids (B,) or (B, K), in one message: the ids travel as bits beside the
    rows."""
    return (tensor, ids) if world_size() == 1 else _GatherWithIds.apply(tensor, ids)


class RowExchange:
    """Which rows of other workers this one needs, each once, and which of its own they need; see `exchange_rows`.

    Args:
        index: (B,) int64 into the rows of all workers, B per worker: what this worker needs.
        needed: (W, B), the `index` of every worker.
        lengths: (W, B) int64, where the rows are texts: a text's tokens up to its last. Padding does not travel.
        width: L, the tokens of this worker's rows, padding included.

    Attributes:
        position: (B,) int64, where each needed row is in "local rows, then the fetched ones".
        fetched: how many rows are fetched.
        width: at least L, and the length of the longest text that is fetched: the tensors must be as wide.
    """

    def __init__(self, index: torch.Tensor, needed: torch.Tensor, lengths: torch.Tensor | None = None, width: int = 1):
        workers, batch = needed.shape
        own = slice(process_index() * batch, (process_index() + 1) * batch)
        wanted = index.new_zeros(workers * batch, dtype=torch.bool)
        wanted[index] = True
        wanted[own] = False
        position = wanted.cumsum(0) + (batch - 1)  # the first that is wanted stands behind the local rows, at `batch`
        position[own] = torch.arange(batch, device=index.device)
        self.position = position[index]
        arriving = wanted.nonzero().squeeze(1)  # in order, so by worker

        local = needed - own.start
        local = torch.where((local >= 0) & (local < batch), local, batch)  # of other workers: into a column to drop
        asked = index.new_zeros((workers, batch + 1), dtype=torch.bool).scatter_(1, local, True)[:, :batch]
        asked[process_index()] = False
        asking, leaving = asked.nonzero(as_tuple=True)  # by asking worker, then by row

        self.fetched, self.width, self.padded = len(arriving), width, lengths is not None
        fetched = torch.arange(self.fetched, device=index.device)
        if lengths is None:
            self.rows, self.places = leaving, fetched
            sent, received = asked.sum(1), wanted.view(workers, batch).sum(1)
        else:
            away, home = lengths.flatten()[arriving], lengths[process_index()][leaving]
            self.width = max(width, int(away.max())) if self.fetched else width
            self.rows, self.places = _tokens(leaving, home, self.width), _tokens(fetched, away, self.width)
            none = lengths.new_zeros(workers)
            sent, received = none.index_add(0, asking, home), none.index_add(0, arriving // batch, away)
        self.sent, self.received = torch.stack([sent, received]).tolist()


def _tokens(rows: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Where the first `lengths` tokens of every row lie, of rows of `width` tokens laid end to end."""
    token = torch.arange(width, device=rows.device)
    return (rows[:, None] * width + token)[token < lengths[:, None]]


def exchange_rows(*requests: tuple[RowExchange, list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The tensors of every request, (B, …) each or, of texts, (B, width, …), with the fetched rows behind them:
    (B + fetched, …), 0 where a fetched text is padded.

    All travels in one message; differentiable. Every worker must call it with tensors of the same row shapes (of
    texts: token shapes), and all tensors must be of one dtype.
    """
    exchanges = [exchange for exchange, tensors in requests for _ in tensors]
    together = iter(_ExchangeRows.apply(exchanges, *(t for _, tensors in requests for t in tensors)))
    return [[next(together) for _ in tensors] for _, tensors in requests]


class _ExchangeRows(torch.autograd.Function):
    """`exchange_rows`; the gradients of fetched rows go home and are added to those of the local ones."""

    @staticmethod
    def forward(ctx, exchanges: list[RowExchange], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.exchanges, ctx.local = exchanges, len(tensors[0])
        parts = [_parts(t, e) for t, e in zip(tensors, exchanges, strict=True)]
        arriving, on_the_way = _send(parts, [(e.rows, e.sent, e.received) for e in exchanges])
        outputs = tuple(map(_with_room, tensors, exchanges))
        on_the_way.wait()
        for output, exchange, blocks in zip(outputs, exchanges, arriving, strict=True):
            fetched = _parts(output[ctx.local :], exchange)
            for places, block in zip(exchange.places.split(exchange.received), blocks, strict=True):
                fetched.index_copy_(0, places, block)
        ctx.mark_non_differentiable(*(o for o, t in zip(outputs, tensors, strict=True) if not t.requires_grad))
        return outputs

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        exchanges, received = [ctx.exchanges[i] for i in wanted], [gradients[i] for i in wanted]
        parts = [_parts(g[ctx.local :], e) for g, e in zip(received, exchanges, strict=True)]
        arriving, on_the_way = _send(parts, [(e.places, e.received, e.sent) for e in exchanges])
        results = [g[: ctx.local].clone(memory_format=torch.contiguous_format) for g in received]
        on_the_way.wait()
        for result, exchange, blocks in zip(results, exchanges, arriving, strict=True):
            for rows, block in zip(exchange.rows.split(exchange.sent), blocks, strict=True):
                _parts(result, exchange).index_add_(0, rows, block)
        by_input = dict(zip(wanted, results, strict=True))
        return None, *(by_input.get(i) for i in range(len(ctx.exchanges)))


def _parts(rows: torch.Tensor, exchange: RowExchange) -> torch.Tensor:
    """What travels alone: the tokens of texts, laid end to end (rows · width, …), or whole rows."""
    return rows.flatten(0, 1) if exchange.padded else rows


def _with_room(tensor: torch.Tensor, exchange: RowExchange) -> torch.Tensor:
    """The tensor with room behind it for the fetched rows."""
    output = tensor.new_empty((len(tensor) + exchange.fetched, *tensor.shape[1:]))
    output[: len(tensor)] = tensor
    if exchange.padded:
        output[len(tensor) :] = 0
    return output


def _send(
    parts: list[torch.Tensor], ways: list[tuple[torch.Tensor, list[int], list[int]]]
) -> tuple[list[list[torch.Tensor]], "dist.Work"]:
    """Starts one exchange of all tensors: which parts leave, how many to each worker and how many come from each.

    Returns the places of what arrives, by tensor and worker, filled once the exchange has been waited for.
    """
    message, leaving, sizes_out = _blocks(parts, [sent for _, sent, _ in ways])
    for part, (index, sent, _), blocks in zip(parts, ways, leaving, strict=True):
        for rows, block in zip(index.split(sent), blocks, strict=True):
            torch.index_select(part, 0, rows, out=block)
    arrived, arriving, sizes_in = _blocks(parts, [received for _, _, received in ways])
    return arriving, dist.all_to_all_single(arrived, message, sizes_in, sizes_out, async_op=True)


def _blocks(
    tensors: list[torch.Tensor], counts: list[list[int]]
) -> tuple[torch.Tensor, list[list[torch.Tensor]], list[int]]:
    """An empty message that holds, worker by worker, counts[k][worker] rows of every tensor k; those places in it, by
    tensor and worker; and the message's size by worker."""
    widths = [math.prod(tensor.shape[1:]) for tensor in tensors]
    sizes = [[n * width for n, width in zip(of_worker, widths, strict=True)] for of_worker in zip(*counts, strict=True)]
    message = tensors[0].new_empty(sum(map(sum, sizes)))
    # worker 0's rows of tensor 0, of tensor 1, …, then worker 1's: what goes to one worker must lie together
    pieces = message.split([size for of_worker in sizes for size in of_worker])
    places = [
        [piece.view(-1, *tensor.shape[1:]) for piece in pieces[k :: len(tensors)]] for k, tensor in enumerate(tensors)
    ]
    return message, places, [sum(of_worker) for of_worker in sizes]


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

"""Two gloo processes equal one process with the doubled batch: losses and gradients."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.model.distributed_r2d2 import RowExchange, exchange_rows, gather, global_mean
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from tests.processes import in_two_processes
from tests.tiny import tiny_batch, tiny_config

NEGATIVES = HardNegatives(
    torch.tensor([7, 2, 3, 4, 5, 6, 0, 1]), torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]), torch.ones(8).bool()
)


def _batch() -> dict:
    batch = tiny_batch(pairs=8)
    batch["image_ids"] = torch.tensor([0, 1, 2, 2, 1, 5, 6, 7])
    batch["mlm_labels"][:3, 4] = batch["input_ids"][:3, 4]  # unequal numbers of masked tokens per worker
    return batch


def _model() -> R2D2ForPreTraining:
    torch.manual_seed(0)
    return R2D2ForPreTraining(tiny_config()).eval()


def _worker(number: int) -> dict:
    local = torch.full((2, 3), float(number), requires_grad=True)
    gathered = gather(local)
    (gathered * torch.arange(4.0)[:, None] * (number + 1)).sum().backward()
    owned = (torch.arange(3.0) + 10 * number).requires_grad_()
    index = torch.tensor([[0, 4, 4], [5, 3, 3]])  # worker 0 needs a row of worker 1 twice; worker 1 none of worker 0
    exchange = RowExchange(index[number], index)
    ((exchanged,),) = exchange_rows((exchange, [owned[:, None]]))
    (exchanged[exchange.position, 0] * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    # texts of 2 and 4 tokens; worker 0 needs both of worker 1, one of them of 3 tokens, worker 1 its own alone
    texts = (torch.arange(4.0 * (1 + number)).view(2, -1, 1) + 10 * (1 + number)).requires_grad_()
    index, lengths = torch.tensor([[3, 2], [2, 2]]), torch.tensor([[2, 1], [1, 3]])
    of_texts = RowExchange(index[number], index, lengths, texts.shape[1])
    padded = torch.nn.functional.pad(texts, (0, 0, 0, of_texts.width - texts.shape[1]))
    mask = (torch.arange(of_texts.width) < lengths[number][:, None]).float()[..., None]
    ((fetched_texts, fetched_mask),) = exchange_rows((of_texts, [padded, mask]))
    (fetched_texts * torch.arange(1.0, 1 + of_texts.width)[:, None]).sum().backward()
    mean = global_mean(torch.tensor(3.0 + number), torch.tensor(1.0 + number))
    model = torch.nn.parallel.DistributedDataParallel(_model())
    rows = slice(4 * number, 4 * number + 4)
    batch = {name: value[rows] for name, value in _batch().items()}
    if number == 1:  # this worker's texts happen to be shorter
        batch = {k: v[:, :7] if k in ("input_ids", "attention_mask") else v for k, v in batch.items()}
        batch["masked_input_ids"], batch["mlm_labels"] = batch["masked_input_ids"][:, :7], batch["mlm_labels"][:, :7]
    output = model(**batch, hard_negatives=HardNegatives(*(part[rows] for part in NEGATIVES)))
    output.loss.backward()
    loss = output.loss.detach().clone()
    dist.all_reduce(loss)
    return {
        "loss": loss / 2,
        "gradients": {n: p.grad for n, p in model.module.named_parameters()},
        "gathered": gathered.detach(),
        "gather_gradient": local.grad,
        "needed": exchanged[exchange.position, 0].detach(),
        "fetched": len(exchanged) - 3,
        "exchange_gradient": owned.grad,
        "texts": fetched_texts.detach()[..., 0],
        "text_mask": fetched_mask[..., 0],
        "text_position": of_texts.position,
        "text_gradient": texts.grad[..., 0],
        "mean": mean,
    }


@pytest.fixture(scope="module")
def workers() -> list[dict]:
    """What the two workers computed."""
    return in_two_processes(_worker)


def test_two_processes_equal_one_with_the_doubled_batch(workers):
    batch = _batch()
    for name in ("input_ids", "attention_mask", "masked_input_ids", "mlm_labels"):  # as cut on worker 1
        batch[name][4:, 7:] = -100 if name == "mlm_labels" else 0
    model = _model()
    output = model(**batch, hard_negatives=NEGATIVES)
    output.loss.backward()
    torch.testing.assert_close(workers[0]["loss"], output.loss.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        for worker in workers:
            torch.testing.assert_close(worker["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-5 * scale + 1e-7)


def test_gathering(workers):
    first, second = workers
    for worker in workers:
        assert worker["gathered"][:, 0].tolist() == [0, 0, 1, 1]
    # rows 0..3 weigh 0..3, times 1 on worker 0 and 2 on worker 1, summed
    assert first["gather_gradient"][:, 0].tolist() == [0, 3]
    assert second["gather_gradient"][:, 0].tolist() == [6, 9]
    assert first["needed"].tolist() == [0, 11, 11]
    assert second["needed"].tolist() == [12, 10, 10]
    assert (first["fetched"], second["fetched"]) == (1, 0)
    assert first["exchange_gradient"].tolist() == [1, 0, 0]
    assert second["exchange_gradient"].tolist() == [6, 6, 1]  # 2 + 4 of its own row 0, 2 + 4 from worker 0 for row 1
    # padding does not travel: of worker 1's texts 1 and 3 tokens, behind two texts of 2 tokens padded to 3
    assert first["texts"].tolist() == [[10, 11, 0], [12, 13, 0], [20, 0, 0], [24, 25, 26]]
    assert first["text_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert first["text_position"].tolist() == [3, 2]
    assert second["texts"].tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    assert second["text_position"].tolist() == [0, 0]
    assert first["text_gradient"].tolist() == [[1, 2], [1, 2]]
    assert second["text_gradient"].tolist() == [[2, 2, 3, 4], [2, 4, 6, 4]]  # 1, and 1, 2, 3 from worker 0
    assert (first["mean"] + second["mean"]).item() / 2 == pytest.approx(7 / 3)  # Σ totals / Σ weights

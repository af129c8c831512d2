"""Two gloo processes with the dual queue equal one with the doubled batch: losses, gradients, queue, teacher."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2.distillation import DualQueueSettings, DualQueueState
from tests.processes import in_two_processes
from tests.systems.runs import towers
from tests.tiny import tiny_batch

STEPS, PAIRS = 4, 8


def batches() -> list[dict]:
    result = []
    for step in range(STEPS):
        batch = tiny_batch(pairs=PAIRS, seed=step, masked=False)
        batch["image_ids"] = torch.tensor([0, 1, 2, 2, 1, 5, 6, 7]) + step  # some come back in the next batch
        result.append(batch)
    return result


def run(rows: slice, with_ids: bool) -> dict:
    """Four steps of SGD on these rows of every batch; the queue holds the last ten pairs."""
    model = towers(dropout=0.0).train()
    model.temperature.requires_grad_(False)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    state = DualQueueState(model, DualQueueSettings(queue_size=10), batch=PAIRS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses, gradients = [], []
    for whole in batches():
        batch = {name: value[rows] for name, value in whole.items() if with_ids or name != "image_ids"}
        state.keys(batch)
        outputs = wrapped(**batch, return_loss=False)
        loss = state.loss(outputs.image_embeds, outputs.text_embeds)
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        loss = loss.detach()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        state.commit(model, 0.9)
    return {"losses": losses, "gradients": gradients, "state": state.state_dict()}


def worker(number: int) -> dict:
    return {with_ids: run(slice(4 * number, 4 * number + 4), with_ids) for with_ids in (True, False)}


@pytest.fixture(scope="module")
def workers() -> list[dict]:
    return in_two_processes(worker)


@pytest.mark.parametrize("with_ids", [True, False])
def test_two_processes_equal_one(workers, with_ids):
    one = run(slice(0, PAIRS), with_ids)
    assert one["losses"][0] == 0
    assert min(one["losses"][1:]) > 0
    first, second = (each[with_ids] for each in workers)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), f"{name} differs between the processes"
        torch.testing.assert_close(value, one["state"][name], rtol=1e-5, atol=1e-6)
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for step in range(STEPS):
        for name, gradient in one["gradients"][step].items():
            scale = gradient.abs().max().item()
            for each in (first, second):
                torch.testing.assert_close(
                    each["gradients"][step][name], gradient, rtol=1e-5, atol=1e-5 * scale + 1e-6, msg=f"{step} {name}"
                )

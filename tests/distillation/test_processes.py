"""Two gloo processes with distillation equal one process with the doubled batch: losses, gradients, queue, teacher."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.distillation import state as state_module
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from tests.processes import in_two_processes
from tests.tiny import tiny_batch, tiny_config

STEPS, PAIRS = 3, 8
IMAGE, TEXT = torch.tensor([7, 2, 3, 4, 5, 6, 0, 1]), torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])


def batches() -> list[dict]:
    result = []
    for step in range(STEPS):
        batch = tiny_batch(pairs=PAIRS, seed=step)
        batch["image_ids"] = torch.tensor([0, 1, 2, 2, 1, 5, 6, 7]) + step  # some come back in the next batch
        batch["mlm_labels"][:3, 4] = batch["input_ids"][:3, 4]  # unequal numbers of masked tokens
        result.append(batch)
    return result


def run(rows: slice, reliability: str) -> dict:
    """Three steps of SGD on these rows of every batch, draws of negatives and patches fixed."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(fgd_prototypes=48))
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    settings = TargetGuidedSettings(queue_size=10, reliability=reliability), FeatureGuidedSettings()
    state = DistillationState(model, *settings, batch=PAIRS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses, gradients = [], []
    for step, whole in enumerate(batches()):
        kept = (torch.arange(PAIRS)[:, None] + torch.arange(2)) % 4
        state_module.draw_kept = lambda *args, kept=kept, **kwargs: kept[rows].sort(dim=1).values
        batch = {name: value[rows] for name, value in whole.items()}
        teacher = state.targets(batch, step, model.current_temperature(), alpha=0.4)
        negatives = HardNegatives(IMAGE[rows], TEXT[rows], torch.ones(PAIRS).bool()[rows])
        loss = wrapped(**batch, teacher=teacher, hard_negatives=negatives).loss
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
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
    return {way: run(slice(4 * number, 4 * number + 4), way) for way in ("loss", "logits")}


@pytest.fixture(scope="module")
def workers() -> list[dict]:
    return in_two_processes(worker)


@pytest.mark.parametrize("reliability", ["loss", "logits"])
def test_two_processes_equal_one(workers, reliability, monkeypatch):
    monkeypatch.setattr(state_module, "draw_kept", state_module.draw_kept)  # put back after `run`
    one = run(slice(0, PAIRS), reliability)
    first, second = (each[reliability] for each in workers)
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

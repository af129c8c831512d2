"""Two gloo processes equal one process with the doubled batch: losses, logits and gradients."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2 import WukongModel
from tests.processes import in_two_processes
from tests.wukong.tiny import KINDS, tiny_wukong, tiny_wukong_batch

IDS = torch.tensor([0, 1, 2, 2, 1, 5, 6, 7])
SETTINGS = {**{kind: (kind, {}) for kind in KINDS}, "zero": ("filip", {"text_padding": "zero"})}


def _model(name: str) -> WukongModel:
    torch.manual_seed(0)
    kind, settings = SETTINGS[name]
    return tiny_wukong(kind, spread=1.0, similarity_chunk_size=3, **settings)


def _batch() -> dict[str, torch.Tensor]:
    batch = tiny_wukong_batch(pairs=8)
    batch["input_ids"][4:, 5:] = batch["attention_mask"][4:, 5:] = 0  # the second worker's texts are shorter
    return {**batch, "image_ids": IDS}


def _worker(number: int) -> dict:
    results = {}
    for name in SETTINGS:
        model = torch.nn.parallel.DistributedDataParallel(_model(name))
        batch = {key: value[4 * number : 4 * number + 4] for key, value in _batch().items()}
        if number == 1:
            batch = {key: value[:, :5] if value.dim() == 2 else value for key, value in batch.items()}
        output = model(**batch, return_loss=True)
        output.loss.backward()
        loss = output.loss.detach().clone()
        dist.all_reduce(loss)
        results[name] = {
            "loss": loss / 2,
            "logits": output.logits_per_image.detach(),
            "gradients": {n: p.grad for n, p in model.module.named_parameters()},
        }
    return results


@pytest.fixture(scope="module")
def workers() -> list[dict]:
    """What the two workers computed."""
    return in_two_processes(_worker)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_with_the_doubled_batch(workers, name):
    model = _model(name)
    output = model(**_batch(), return_loss=True)
    output.loss.backward()
    for number, worker in enumerate(workers):
        torch.testing.assert_close(worker[name]["loss"], output.loss.detach(), rtol=1e-5, atol=1e-6)
        own = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(worker[name]["logits"], output.logits_per_image[own, own].detach())
        for parameter, gradient in worker[name]["gradients"].items():
            expected = model.get_parameter(parameter).grad
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * scale + 1e-7)

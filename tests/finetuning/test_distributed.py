"""Two gloo processes equal one process with the doubled batch, in every task: losses and gradients."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2.finetuning.parameters import freeze
from modeling_r2d2.finetuning.run import MODEL_CLASSES, UNREAD
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from tests.processes import in_two_processes
from tests.tiny import tiny_batch, tiny_config

NEGATIVES = HardNegatives(
    torch.tensor([7, 2, 3, 4, 5, 6, 0, 1]), torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]), torch.ones(8).bool()
)


def batch_of(task: str) -> dict:
    batch = tiny_batch(pairs=8, masked=False)
    image_ids, ids = batch.pop("image_ids"), batch["input_ids"]
    if task == "retrieval":  # pair 1 and pair 6, on different workers, have one caption
        return {**batch, "image_ids": image_ids, "text_ids": torch.tensor([0, 1, 2, 2, 4, 5, 1, 7])}
    if task == "matching":
        return {**batch, "labels": torch.tensor([1, 0, 1, 1, 0, 0, 0, 1])}
    if task == "caption":  # unequal numbers of tokens per worker
        return {**batch, "labels": ids.masked_fill(batch["attention_mask"] == 0, -100)}
    return {"pixel_values": batch["pixel_values"], "labels": torch.arange(8) % 2}


def model_of(task: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODEL_CLASSES[task](tiny_config(num_labels=2)).eval()
    freeze(model, UNREAD.get(task, ()))
    return model


def _worker(number: int) -> dict:
    rows, found = slice(4 * number, 4 * number + 4), {}
    for task in MODEL_CLASSES:
        model = torch.nn.parallel.DistributedDataParallel(model_of(task))
        batch = {name: value[rows] for name, value in batch_of(task).items()}
        if task == "retrieval":
            batch["hard_negatives"] = HardNegatives(*(part[rows] for part in NEGATIVES))
        output = model(**batch)
        output.loss.backward()
        loss = output.loss.detach().clone()
        dist.all_reduce(loss)
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
        found[task] = {"loss": loss / 2, "gradients": gradients}
    return found


@pytest.fixture(scope="module")
def workers() -> list[dict]:
    return in_two_processes(_worker)


@pytest.mark.parametrize("task", list(MODEL_CLASSES))
def test_two_processes_equal_one_with_the_doubled_batch(workers, task):
    model = model_of(task)
    output = model(**batch_of(task), **({"hard_negatives": NEGATIVES} if task == "retrieval" else {}))
    output.loss.backward()
    for worker in workers:
        found = worker[task]
        torch.testing.assert_close(found["loss"], output.loss.detach(), rtol=1e-5, atol=1e-6)
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert found["gradients"].keys() == trained.keys()
        for name, gradient in trained.items():
            assert gradient is not None, name  # DistributedDataParallel would wait for it
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-5, atol=1e-5 * scale + 1e-7)

"""BriVL's loss against a second implementation, written from the formula."""

import numpy as np
import pytest
import torch

from modeling_r2d2.distillation.dual_queue_losses import dual_queue_loss

TAU = 0.07


def unit(rows: int, seed: int, width: int = 5) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference(q_i, q_t, k_i, k_t, queue_i, queue_t, left_out=None) -> float:
    """Sample by sample, term by term."""
    total = 0.0
    for row in range(len(q_i)):
        for query, key, queue in ((q_i[row], k_t[row], queue_t), (q_t[row], k_i[row], queue_i)):
            positive = np.exp(query @ key / TAU)
            negatives = [
                np.exp(query @ entry / TAU)
                for place, entry in enumerate(queue)
                if left_out is None or not left_out[row, place]
            ]
            total += -np.log(positive / (positive + sum(negatives)))
    return total / len(q_i)


def inputs(pairs: int, queued: int) -> list[np.ndarray]:
    return [unit(pairs, seed) for seed in range(4)] + [unit(queued, seed) for seed in (4, 5)]


def torched(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


@pytest.mark.parametrize(("pairs", "queued"), [(1, 1), (1, 7), (6, 3), (4, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_against_numpy(pairs, queued, masked):
    arrays = inputs(pairs, queued)
    left_out = np.random.default_rng(9).random((pairs, queued)) < 0.4 if masked else None
    given = None if left_out is None else torch.tensor(left_out)
    loss = dual_queue_loss(*torched(arrays), torch.tensor(TAU), given)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(*arrays, left_out), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [0, 1])
def test_gradient_of_the_queries(name):
    arrays, step = inputs(3, 6), 1e-5
    tensors = torched(arrays)
    tensors[name].requires_grad_()
    dual_queue_loss(*tensors, torch.tensor(TAU)).backward()
    expected = np.zeros_like(arrays[name])
    for place in np.ndindex(expected.shape):
        moved = [array.copy() for array in arrays]
        moved[name][place] += step
        above = reference(*moved)
        moved[name][place] -= 2 * step
        expected[place] = (above - reference(*moved)) / (2 * step)
    np.testing.assert_allclose(tensors[name].grad.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_other_pairs_of_the_batch_are_no_negatives():
    """A pair's loss is the same alone and in a batch."""
    arrays = inputs(4, 6)
    alone = [
        dual_queue_loss(*torched([a[i : i + 1] for a in arrays[:4]] + arrays[4:]), torch.tensor(TAU)) for i in range(4)
    ]
    together = dual_queue_loss(*torched(arrays), torch.tensor(TAU))
    assert together.item() == pytest.approx(sum(map(float, alone)) / 4, rel=1e-5)


@pytest.mark.parametrize("queued", [0, 3])
def test_nothing_to_compare_with(queued):
    """An empty queue, and one of which every entry is left out: loss and gradient 0, not NaN."""
    tensors = torched([*inputs(2, 1)[:4], unit(queued, 4), unit(queued, 5)])
    tensors[0].requires_grad_()
    loss = dual_queue_loss(*tensors, torch.tensor(TAU), torch.ones(2, queued, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not tensors[0].grad.any()


def test_half_precision_is_computed_in_float32():
    tensors = torched(inputs(3, 8))
    expected = dual_queue_loss(*(t.bfloat16().float() for t in tensors), torch.tensor(TAU))
    with torch.autocast("cpu", torch.bfloat16):
        loss = dual_queue_loss(*(t.bfloat16() for t in tensors), torch.tensor(TAU))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

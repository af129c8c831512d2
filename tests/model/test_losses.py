"""Each objective against a second implementation, in numpy and written from the formula."""

import numpy as np
import pytest
import torch

from modeling_r2d2.model import losses_r2d2 as L

rng = np.random.default_rng(0)


def unit(rows: int, width: int = 8) -> np.ndarray:
    x = rng.normal(size=(rows, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def as_tensor(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float32)


def test_pre_ranking_loss_averages_over_the_captions_of_a_image():
    images, texts, ids, tau = unit(5), unit(5), [3, 3, 7, 1, 7], 0.07
    expected = 0.0
    for rows, columns in ((images, texts), (texts, images)):
        logp = log_softmax(rows @ columns.T / tau)
        for i in range(5):
            positive = [j for j in range(5) if ids[j] == ids[i]]
            expected -= np.mean([logp[i, j] for j in positive]) / 5 / 2
    ids = torch.tensor(ids)
    image_embeds, text_embeds, temperature = as_tensor(images), as_tensor(texts), torch.tensor(tau)
    loss = L.pre_ranking_loss(
        L.scaled_similarity(image_embeds, text_embeds, temperature),
        L.scaled_similarity(text_embeds, image_embeds, temperature),
        L.contrastive_targets(L.same_identity(ids, ids)),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_keeps_the_mass_of_its_targets():
    logits, targets = rng.normal(size=(3, 4)), rng.uniform(size=(3, 4))
    expected = -(targets * log_softmax(logits)).sum(axis=1)
    np.testing.assert_allclose(L.soft_cross_entropy(as_tensor(logits), as_tensor(targets)), expected, rtol=1e-5)


def test_ranking_loss_is_a_weighted_mean_per_encoder():
    text_logits, image_logits = rng.normal(size=(2, 6, 2))
    labels = np.array([1, 1, 0, 0, 0, 0])
    expected = 0.0
    for logits in (text_logits, image_logits):
        weight = np.where(labels == 1, 2.0, 1.0)
        losses = -log_softmax(logits)[np.arange(6), labels]
        expected += (weight * losses).sum() / weight.sum() / 2
    loss = L.ranking_loss(as_tensor(text_logits), as_tensor(image_logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    reference = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    both = [reference(as_tensor(x), torch.tensor(labels)).item() for x in (text_logits, image_logits)]
    assert loss.item() == pytest.approx(np.mean(both), rel=1e-5)


def test_masked_language_modeling_loss():
    logits, labels = rng.normal(size=(4, 11)), np.array([1, 0, 10, 3])
    expected = -log_softmax(logits)[np.arange(4), labels].mean()
    assert L.masked_language_modeling_loss(as_tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected)
    empty = L.masked_language_modeling_loss(torch.empty(0, 11), torch.empty(0, dtype=torch.int64))
    assert empty.item() == 0.0


def test_hard_negatives_are_drawn_by_the_masked_softmax():
    similarity = as_tensor(rng.normal(size=(4, 4)) * 2)
    ids = torch.tensor([0, 1, 1, 2])
    positives = L.same_identity(ids, ids)
    weights = np.exp(log_softmax(similarity.numpy())) * ~positives.numpy()
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(L.negative_logits(similarity, positives).softmax(dim=1), expected, rtol=1e-5)
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros((4, 4))
    draws = 4000
    for _ in range(draws):
        drawn = L.draw_hard_negatives(similarity, similarity, positives, generator)
        counts[np.arange(4), drawn.text_index] += 1
    assert counts[positives.numpy()].sum() == 0
    np.testing.assert_allclose(counts / draws, expected, atol=0.03)


def test_hard_negatives_where_the_softmax_underflows():
    """At τ = 0.001 every negative's probability is exactly zero in float32; the draw still finds the hardest."""
    similarity = torch.tensor([[1.0, 0.2, 0.5], [0.1, 1.0, 0.3], [0.4, 0.8, 1.0]]) / 0.001
    positives = torch.eye(3, dtype=torch.bool)
    assert similarity.softmax(dim=1)[~positives].sum() == 0
    drawn = L.draw_hard_negatives(similarity, similarity, positives)
    assert drawn.text_index.tolist() == [2, 2, 1]
    assert L.hardest_negatives(similarity, similarity, positives).text_index.tolist() == [2, 2, 1]


def test_a_batch_with_one_id_has_no_negative():
    positives = torch.ones(3, 3, dtype=torch.bool)
    drawn = L.draw_hard_negatives(torch.zeros(3, 3), torch.zeros(3, 3), positives)
    assert not drawn.valid.any()
    mixed = positives.clone()
    mixed[0, 1] = False
    assert L.draw_hard_negatives(torch.zeros(3, 3), torch.zeros(3, 3), mixed).valid.tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32_in_half_precision(dtype):
    images, texts = as_tensor(unit(4)).to(dtype), as_tensor(unit(4)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = L.scaled_similarity(images, texts, torch.tensor(0.07, dtype=dtype))
    assert logits.dtype is torch.float32
    exact = images.float() @ texts.float().T / torch.tensor(0.07, dtype=dtype).float()
    torch.testing.assert_close(logits, exact)
    loss = L.ranking_loss(torch.randn(6, 2).to(dtype), torch.randn(6, 2).to(dtype), torch.tensor([1, 1, 0, 0, 0, 0]))
    assert loss.dtype is torch.float32

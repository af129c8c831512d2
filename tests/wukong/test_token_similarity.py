"""Token-wise similarity and its loss against loops over pairs; gradients; chunks; the odd cases."""

import numpy as np
import pytest
import torch

from modeling_r2d2.model.losses_r2d2 import contrastive_targets, same_identity
from modeling_r2d2.model.token_similarity_r2d2 import (
    TokenWiseSimilarity,
    _TokenWise,
    token_wise_contrastive_loss,
    token_wise_similarity,
)
from tests.wukong import reference

IMAGES, TEXTS, TOKENS, LENGTH, WIDTH = 7, 6, 5, 6, 4
LENGTHS = np.array([6, 1, 0, 3, 5, 2])


@pytest.fixture
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    return reference.unit(rng, IMAGES, TOKENS, WIDTH), reference.unit(rng, TEXTS, LENGTH, WIDTH), mask


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(array) for array in arrays]


def direct(images: torch.Tensor, texts: torch.Tensor, mask: torch.Tensor) -> TokenWiseSimilarity:
    """All products at once, differentiated by torch."""
    products = torch.einsum("ind,tld->itnl", images, texts)
    hidden = products.masked_fill(~mask[:, None], -torch.inf).amax(dim=3)
    per_image = torch.where(mask.any(dim=1)[:, None], hidden, 0).mean(dim=2)
    per_text = (products.amax(dim=2) * mask).sum(dim=2) / mask.sum(dim=1).clamp_min(1)
    return TokenWiseSimilarity(per_image, per_text.t())


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
@pytest.mark.parametrize("zero", [False, True])
def test_similarity_against_loops_over_pairs(inputs, chunk, zero):
    padded = LENGTHS < LENGTH if zero else None
    expected = reference.similarity(*inputs, padded)
    flags = None if padded is None else torch.tensor(padded)
    actual = token_wise_similarity(*tensors(*inputs), chunk_size=chunk, zero_padded=flags)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert (actual.per_image[:, 2] == 0).all()  # the text without a real token
    assert (actual.per_text[2] == 0).all()


def test_zero_padding_lifts_negative_similarities_only(inputs):
    images, texts, mask = tensors(*inputs)
    plain = token_wise_similarity(images, texts, mask).per_image
    lifted = token_wise_similarity(images, texts, mask, zero_padded=mask.sum(dim=1) < LENGTH).per_image
    assert torch.equal(plain[:, 0], lifted[:, 0])  # no padding to compare with
    assert (lifted >= plain).all()
    assert (lifted > plain).any()


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("zero", [False, True])
def test_gradients(inputs, chunk, zero):
    images, texts, mask = (tensor[:5] for tensor in tensors(*inputs))
    flags = mask.sum(dim=1) < LENGTH if zero else None
    images.requires_grad_()
    texts.requires_grad_()

    def both(images, texts):
        return tuple(token_wise_similarity(images, texts, mask, chunk_size=chunk, zero_padded=flags))

    assert torch.autograd.gradcheck(both, (images, texts))


def test_chunked_gradients_equal_those_of_all_products_at_once(inputs):
    images, texts, mask = tensors(*inputs)
    weights = torch.randn(IMAGES, TEXTS, dtype=torch.float64), torch.randn(TEXTS, IMAGES, dtype=torch.float64)
    gradients = []
    for compare in (lambda *a: token_wise_similarity(*a, chunk_size=3), direct):
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        similarity = compare(*leaves, mask)
        sum((part * weight).sum() for part, weight in zip(similarity, weights, strict=True)).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert not gradients[0][1][~mask].any()  # padding gets none


def test_one_direction_alone(inputs):
    images, texts, mask = tensors(*inputs)
    images.requires_grad_()
    both = token_wise_similarity(images, texts, mask)
    first = token_wise_similarity(images, texts, mask, text_to_image=False)
    second = token_wise_similarity(images, texts, mask, image_to_text=False)
    assert first.per_text is None
    assert second.per_image is None
    assert torch.equal(first.per_image, both.per_image)
    assert torch.equal(second.per_text, both.per_text)
    both.per_image.sum().backward()
    expected, images.grad = images.grad, None
    first.per_image.sum().backward()
    torch.testing.assert_close(images.grad, expected)


def test_only_the_gradients_that_are_needed(inputs):
    """A locked side costs nothing: its gradient is not made."""
    images, texts, mask = tensors(*inputs)
    texts.requires_grad_()
    similarity = token_wise_similarity(images, texts, mask)
    assert isinstance(similarity.per_image.grad_fn, _TokenWise._backward_cls)
    similarity.per_image.sum().backward()
    assert texts.grad is not None
    assert images.grad is None


def test_masks_need_not_be_prefixes(inputs):
    """[CLS] and [SEP] may be left out of the comparison."""
    images, texts, _ = inputs
    mask = np.random.default_rng(1).uniform(size=(TEXTS, LENGTH)) < 0.5
    actual = token_wise_similarity(*tensors(images, texts, mask), chunk_size=2)
    for ours, theirs in zip(actual, reference.similarity(images, texts, mask), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_batch_of_one_with_one_token():
    x, y = torch.tensor([[[0.6, 0.8]]]), torch.tensor([[[1.0, 0.0]]])
    similarity = token_wise_similarity(x, y, torch.ones(1, 1))
    assert similarity.per_image.tolist() == similarity.per_text.tolist() == [[pytest.approx(0.6)]]
    nothing = token_wise_similarity(x, y, torch.zeros(1, 1))
    assert nothing.per_image.tolist() == nothing.per_text.tolist() == [[0.0]]


def test_a_text_without_real_tokens_has_no_gradient():
    images = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1).requires_grad_()
    texts = torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=-1).requires_grad_()
    similarity = token_wise_similarity(images, texts, torch.zeros(2, 5))
    (similarity.per_image.sum() + similarity.per_text.sum()).backward()
    assert not images.grad.any()
    assert not texts.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_in_half_precision(inputs, dtype):
    images, texts, mask = tensors(*inputs)
    images, texts = images.to(dtype).requires_grad_(), texts.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = token_wise_similarity(images, texts, mask)
        (similarity.per_image.sum() + similarity.per_text.sum()).backward()
    exact = images.detach().float().requires_grad_()
    expected = direct(exact, texts.float(), mask)
    (expected.per_image.sum() + expected.per_text.sum()).backward()
    for ours, theirs in zip(similarity, expected, strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(images.grad, exact.grad.to(dtype))


def test_texts_are_trimmed_to_their_block(inputs, monkeypatch):
    """No product is made for padding that a whole block shares."""
    from modeling_r2d2.model import token_similarity_r2d2 as module

    shapes, original = [], module._products

    def products(images, texts):
        shapes.append(texts.shape[1])
        return original(images, texts)

    monkeypatch.setattr(module, "_products", products)
    token_wise_similarity(*tensors(*inputs), chunk_size=2)
    assert sorted(set(shapes)) == [1, 3, 6]  # lengths 0 and 1, 2 and 3, 5 and 6


def test_contrastive_loss(inputs):
    images, texts, mask = inputs
    images, ids, tau = images[:TEXTS], [3, 3, 7, 1, 7, 0], 0.07
    expected = reference.contrastive_loss(*reference.similarity(images, texts, mask), tau, ids)
    targets = contrastive_targets(same_identity(torch.tensor(ids), torch.tensor(ids)))
    similarity = token_wise_similarity(*tensors(images, texts, mask), chunk_size=4)
    loss = token_wise_contrastive_loss(similarity, torch.tensor(tau), targets)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_errors():
    images, texts, mask = torch.randn(2, 3, 4), torch.randn(5, 6, 4), torch.ones(5, 6)
    with pytest.raises(ValueError, match="same width"):
        token_wise_similarity(images, texts[:, :, :3], mask)
    with pytest.raises(ValueError, match=r"text_mask must be \(T, L\) = \(5, 6\)"):
        token_wise_similarity(images, texts, mask[:, :5])
    with pytest.raises(ValueError, match="no tokens"):
        token_wise_similarity(images, texts[:0], mask[:0])
    with pytest.raises(ValueError, match="chunk_size"):
        token_wise_similarity(images, texts, mask, chunk_size=0)
    with pytest.raises(ValueError, match="zero_padded"):
        token_wise_similarity(images, texts, mask, zero_padded=torch.ones(2))

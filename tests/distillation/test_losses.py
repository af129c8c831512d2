"""The objectives of distillation against independent numpy implementations, row by row as the formulas read."""

import math

import numpy as np
import pytest
import torch

from modeling_r2d2.model.distillation_losses_r2d2 import (
    cosine_agreement,
    feature_guided_loss,
    feature_temperatures,
    relative_entropy,
    soft_targets,
    target_guided_loss,
    teacher_distribution,
)
from modeling_r2d2.model.feature_heads_r2d2 import R2D2FeatureHead

RNG = np.random.default_rng(0)
ROWS, CANDIDATES, WIDTH, TEMPERATURE, ALPHA = 3, 7, 5, 0.2, 0.4


def unit(rows: int) -> np.ndarray:
    values = RNG.normal(size=(rows, WIDTH))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


TEACHER_ROWS, TEACHER_CANDIDATES, STUDENT = unit(ROWS), unit(CANDIDATES), unit(ROWS)
IDS, CANDIDATE_IDS = np.array([4, 9, 4]), np.array([4, 9, 4, 1, 9, 2, 4])
RELIABILITY = 0.99 ** np.array([0, 0, 0, 5, 5, 40, 40])


def reference_targets(placement: str | None) -> np.ndarray:
    targets = np.zeros((ROWS, CANDIDATES))
    for i in range(ROWS):
        logits = TEACHER_CANDIDATES @ TEACHER_ROWS[i] / TEMPERATURE
        hard = (IDS[i] == CANDIDATE_IDS).astype(float)
        if placement == "logits":
            logits = logits + np.log(RELIABILITY)
            hard = hard * RELIABILITY
        targets[i] = ALPHA * softmax(logits) + (1 - ALPHA) * hard / hard.sum()
        if placement == "loss":
            targets[i] *= RELIABILITY
    return targets


@pytest.mark.parametrize("placement", [None, "loss", "logits"])
def test_soft_targets(placement):
    targets = soft_targets(
        tensor(TEACHER_ROWS),
        tensor(TEACHER_CANDIDATES),
        torch.tensor(IDS[:, None] == CANDIDATE_IDS),
        torch.tensor(TEMPERATURE),
        ALPHA,
        None if placement is None else tensor(RELIABILITY),
        placement or "loss",
    )
    np.testing.assert_allclose(targets.numpy(), reference_targets(placement), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("placement", ["loss", "logits"])
def test_target_guided_loss(placement):
    targets = reference_targets(placement)
    logits = STUDENT @ TEACHER_CANDIDATES.T / TEMPERATURE + (np.log(RELIABILITY) if placement == "logits" else 0)
    other = logits[:, ::-1].copy()
    total = 0.0
    for rows in (logits, other):
        total += np.mean([-np.sum(targets[i] * np.log(softmax(rows[i]))) for i in range(ROWS)]) / 2
    loss = target_guided_loss(tensor(logits), tensor(other), tensor(targets), tensor(targets))
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_feature_guided_loss():
    student, teacher = RNG.uniform(-1, 1, (2, ROWS, WIDTH)), RNG.uniform(-1, 1, (2, ROWS, WIDTH))
    centers = RNG.normal(size=(2, WIDTH))
    total = 0.0
    for way in range(2):
        for i in range(ROWS):
            target = softmax((teacher[way, i] - centers[way]) / 0.04)
            total -= np.sum(target * np.log(softmax(student[way, i] / 0.1))) / ROWS / 2
    targets = [teacher_distribution(tensor(teacher[way]), tensor(centers[way]), 0.04) for way in range(2)]
    loss = feature_guided_loss(tensor(student[0]), tensor(student[1]), *targets, 0.1)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_feature_head():
    torch.manual_seed(0)
    head = R2D2FeatureHead(width=6, hidden_size=10, bottleneck_size=4, prototypes=7)
    features = RNG.normal(size=(5, 6))
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    states = features
    for place in (0, 2, 4):
        states = states @ weights[f"layers.{place}.weight"].T + weights[f"layers.{place}.bias"]
        if place < 4:
            states = states * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(states)
    expected = np.empty((5, 7))
    for i in range(5):
        for k in range(7):
            one, other = states[i], weights["prototypes.weight"][k]
            expected[i, k] = one @ other / math.sqrt(one @ one) / math.sqrt(other @ other)
    given = tensor(features).requires_grad_()
    cosines = head(given)
    np.testing.assert_allclose(cosines.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert head.to(torch.bfloat16)(given.bfloat16()).dtype == torch.float32
    with torch.no_grad():
        head.float().prototypes.weight.mul_(3)  # weight-normalised: its length does not matter
    torch.testing.assert_close(head(given), cosines, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("width", "prototypes"), [(24, 384), (128, 2048), (256, 4096), (256, 65536), (768, 4096)])
def test_temperatures_make_targets_neither_sharp_nor_flat_at_any_width(width, prototypes):
    """Neither one prototype nor all of them alike; at 256 DINO's."""
    rng = np.random.default_rng(0)
    points, directions = rng.normal(size=(32, width)), rng.normal(size=(prototypes, width))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    student, teacher = feature_temperatures(width)
    assert (student, teacher) == pytest.approx((0.1 * (256 / width) ** 0.5, 0.04 * (256 / width) ** 0.5))
    rows = [softmax(row / teacher) for row in points @ directions.T]
    entropy = -np.mean([np.sum(row * np.log(row)) for row in rows])
    assert entropy == pytest.approx(np.log(prototypes) - 1.56**2 / 2, abs=0.15)
    assert 0.75 < entropy / np.log(prototypes) < 0.92
    targets = teacher_distribution(tensor(points @ directions.T), torch.zeros(prototypes), teacher)
    assert relative_entropy(targets).item() == pytest.approx(entropy / np.log(prototypes), rel=1e-4)


def test_a_student_that_agrees_with_reliable_logits_has_no_gradient():
    """Reliability in the logits: with α = 1 a student equal to the teacher is at the minimum."""
    rows, candidates = tensor(TEACHER_ROWS).requires_grad_(), tensor(TEACHER_CANDIDATES)
    reliability = tensor(RELIABILITY)
    positives = torch.tensor(IDS[:, None] == CANDIDATE_IDS)
    targets = soft_targets(
        rows.detach(), candidates, positives, torch.tensor(TEMPERATURE), 1.0, reliability, placement="logits"
    )
    logits = rows @ candidates.t() / TEMPERATURE + reliability.log()
    target_guided_loss(logits, logits, targets, targets).backward()
    assert rows.grad.abs().max() < 1e-6


def test_half_precision_is_computed_in_single():
    student = torch.randn(4, 8, dtype=torch.bfloat16)
    targets = teacher_distribution(student, torch.zeros(8), 0.04)
    assert targets.dtype == torch.float32
    assert feature_guided_loss(student, student, targets, targets, 0.1).dtype == torch.float32


def test_cosine_agreement():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert cosine_agreement(first, second).item() == pytest.approx(0.5)

"""Two-stage scores: against a posterior that is known, in saturation and low precision, and tier by tier."""

import numpy as np
import pytest
import torch

from modeling_r2d2.inference.ranker import MatchLogits
from modeling_r2d2.inference.scoring import TwoStageScore, in_tiers
from modeling_r2d2.model.losses_r2d2 import draw_hard_negatives
from modeling_r2d2.model.modeling_r2d2 import match_log_odds, match_probability
from tests.helpers import tiny_model

TAU = 0.3


def logits_of(p: np.ndarray) -> torch.Tensor:
    """(…, 2) logits whose softmax gives p."""
    return torch.from_numpy(np.stack([np.log1p(-p), np.log(p)], axis=-1))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def order(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=-1)


class TestPosterior:
    """Texts and pictures with a joint distribution drawn at random, wrong pictures drawn by similarities that know
    little of it, and the ranker that its loss is least for."""

    texts, images = 6, 9

    def ideal(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Similarities (T, I), the posterior (T, I), and p (T, I) least of the expected weighted cross-entropy."""
        joint = rng.dirichlet(np.full(self.texts * self.images, 0.3)).reshape(self.texts, self.images) + 1e-4
        joint /= joint.sum()
        joint /= self.images * joint.sum(0)  # pictures occur equally often
        posterior = joint / joint.sum(1, keepdims=True)
        s = rng.uniform(-1, 1, joint.shape)
        q = softmax(s / TAU)
        # per text: a true pair of weight 2 by the posterior, a wrong one of weight 1 by q. d/dz of
        # 2 P log(1 + e^-z) + q log(1 + e^z) is zero where e^z = 2 P / q; found here by Newton's method instead
        z = np.zeros_like(s)
        for _ in range(200):
            p = 1 / (1 + np.exp(-z))
            z -= np.clip((q * p - 2 * posterior * (1 - p)) / ((q + 2 * posterior) * p * (1 - p)), -1, 1)
        return s, posterior, 1 / (1 + np.exp(-z))

    def test_softmax_of_the_fused_score_is_the_posterior(self):
        unlike = 0
        for seed in range(20):
            s, posterior, p = self.ideal(np.random.default_rng(seed))
            cosine, log_odds = torch.from_numpy(s), torch.from_numpy(np.log(p) - np.log1p(-p))
            fused = TwoStageScore("fused", TAU)(cosine, log_odds)
            np.testing.assert_allclose(softmax(fused.numpy()), posterior, atol=1e-9)
            published = TwoStageScore("published", TAU)(cosine, log_odds)
            np.testing.assert_allclose(published.numpy(), s + p, atol=1e-12)
            unlike += int((order(published.numpy()) != order(posterior)).any(-1).sum())
            assert (order(log_odds.numpy()) != order(posterior)).any(), "the ranker alone leaves out what the draw told"
        assert unlike > 60, "of 120 texts"

    def test_negatives_of_both_ways(self):
        """Where exp(s/τ) is the density ratio, as pre-ranking's own loss has it, a wrong pair by either way has the
        same odds, the ideal ranker's are constant, and pre-ranking alone orders; the fused score agrees."""
        rng = np.random.default_rng(0)
        joint = rng.dirichlet(np.ones(self.texts * self.images)).reshape(self.texts, self.images)
        of_text, of_image = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
        s = TAU * np.log(joint / (of_text * of_image))
        by_text = of_text * (of_image * np.exp(s / TAU)) / (of_image * np.exp(s / TAU)).sum(1, keepdims=True)
        by_image = of_image * (of_text * np.exp(s / TAU)) / (of_text * np.exp(s / TAU)).sum(0, keepdims=True)
        log_odds = np.log(2 * joint / (by_text + by_image))
        np.testing.assert_allclose(log_odds, log_odds[0, 0], atol=1e-9)
        fused = TwoStageScore("fused", TAU)(torch.from_numpy(s), torch.from_numpy(log_odds)).numpy()
        np.testing.assert_allclose(softmax(fused + np.log(of_image)), joint / of_text, atol=1e-9)

    def test_negatives_are_drawn_as_the_derivation_says(self):
        """The odds of a pair in draws of `draw_hard_negatives` are those of the ideal ranker."""
        generator = torch.Generator().manual_seed(0)
        count, s = 6, torch.randn(6, 6, generator=generator)
        own = torch.eye(count, dtype=torch.bool)
        drawn = np.zeros((count, count))
        for _ in range(400):
            found = draw_hard_negatives(s.t().repeat(50, 1), s.repeat(50, 1), own.repeat(50, 1), generator=generator)
            np.add.at(drawn, (np.tile(np.arange(count), 50), found.image_index.numpy()), 1)
        q = np.exp(s.numpy().astype(np.float64)) * ~own.numpy()
        np.testing.assert_allclose(drawn / drawn.sum(1, keepdims=True), q / q.sum(1, keepdims=True), atol=0.01)


class TestLogOdds:
    def test_against_numpy(self):
        logits = np.random.default_rng(0).normal(scale=3, size=(2, 50, 2))
        p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., 1].mean(0)
        found = match_log_odds(*torch.tensor(logits, dtype=torch.float32))
        np.testing.assert_allclose(found.numpy(), np.log(p) - np.log1p(-p), rtol=1e-4, atol=1e-5)

    def test_saturated_logits_keep_their_order(self):
        margin = torch.tensor([-300.0, -120.0, -50.0, -1.0, 0.0, 30.0, 31.0, 150.0, 300.0])
        logits = torch.stack([-margin, margin], dim=-1)
        found = match_log_odds(logits, logits)
        torch.testing.assert_close(found, 2 * margin, rtol=1e-6, atol=1e-6)
        assert match_probability(logits, logits).unique().numel() < len(margin)
        # one of two encoders that are sure of the opposite: what is left of the less sure one
        other = match_log_odds(torch.tensor([0.0, 60.0]), torch.tensor([0.0, -80.0]))
        assert float(other) == pytest.approx(0.0, abs=1e-6)
        assert bool((match_log_odds(logits, logits.flip(0)).diff().abs() >= 0).all())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision(self, dtype):
        logits = (4 * torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(1))).to(dtype)
        found = match_log_odds(*logits)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, match_log_odds(*logits.float()), rtol=0, atol=0)
        torch.testing.assert_close(found.sigmoid(), match_probability(*logits), rtol=0, atol=1e-6)

    def test_one_encoder_alone(self):
        logits = torch.tensor([[0.5, -1.0], [-90.0, 90.0]])
        for found in (MatchLogits(logits, None), MatchLogits(None, logits)):
            torch.testing.assert_close(found.match_log_odds, torch.tensor([-1.5, 180.0]))


def test_weights_and_temperature():
    cosine, log_odds = torch.tensor([0.2, -0.5]), torch.tensor([3.0, -1.0])
    score = TwoStageScore("fused", 0.1, similarity_weight=0.5, match_weight=2.0)
    torch.testing.assert_close(score(cosine, log_odds), 0.5 * cosine / 0.1 + 2 * log_odds)
    torch.testing.assert_close(score.pre_ranking(cosine), 5 * cosine)
    published = TwoStageScore("published", 0.1)
    torch.testing.assert_close(published.pre_ranking(cosine), cosine)
    with pytest.raises(ValueError, match="score is 'sum'; use one of fused, published"):
        TwoStageScore("sum", 0.1)


def test_of_a_model():
    model = tiny_model()
    assert TwoStageScore.of(model) == TwoStageScore("fused", pytest.approx(model.config.temperature_init_value))
    model.config.two_stage_score = "published"
    assert TwoStageScore.of(model).rule == "published"
    assert TwoStageScore.of(model, "fused").rule == "fused"
    with torch.no_grad():
        model.temperature.fill_(7.0)  # an optimizer step left the bounds
    assert TwoStageScore.of(model).temperature == model.config.temperature_max


class TestTiers:
    def test_lower_tiers_stay_below_in_their_order(self):
        generator = torch.Generator().manual_seed(0)
        scores = 100 * torch.randn(5, 30, generator=generator)
        tiers = torch.randint(3, (5, 30), generator=generator)
        found = in_tiers(scores, tiers)
        for row, own, tier in zip(found, scores, tiers, strict=True):
            torch.testing.assert_close(row[tier == 0], own[tier == 0], rtol=0, atol=0)
            for low in (1, 2):
                assert row[tier == low].max() <= row[tier < low].min() - 1 + 1e-4
                assert row[tier == low].argsort().tolist() == own[tier == low].argsort().tolist()

    def test_what_lies_below_already_stays(self):
        scores = torch.tensor([[3.0, 2.0, 0.5, -1.0], [3.0, 2.0, 1.5, 2.5]])
        found = in_tiers(scores, torch.tensor([[0, 0, 2, 2], [0, 0, 1, 1]]))
        assert found.tolist() == [[3.0, 2.0, 0.5, -1.0], [3.0, 2.0, 0.0, 1.0]]

    def test_nothing_above(self):
        scores = torch.tensor([[3.0, 2.0]])
        assert in_tiers(scores, torch.tensor([[2, 2]])).tolist() == scores.tolist()

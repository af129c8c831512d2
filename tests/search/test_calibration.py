"""Calibration against scikit-learn and data whose true probabilities are known; what is measured, by hand."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from modeling_r2d2.figures.reliability import reliability_plot
from modeling_r2d2.inference.calibrating import calibrate_model, draw_pairs, measure
from modeling_r2d2.inference.calibration import (
    Calibration,
    fit_calibration,
    fit_log_odds,
    reliability,
    threshold_for,
)
from modeling_r2d2.inference.encoding import encode_images, encode_texts
from modeling_r2d2.inference.identity import identity_of_weights
from modeling_r2d2.inference.negatives import similarity_logits
from modeling_r2d2.processing.datasets.gallery import Gallery, positive_pairs
from tests.helpers import tiny_image


def known(slope, intercept, pairs=20_000, seed=0):
    """Scores, and labels drawn with the probability σ(slope · z + intercept)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(scale=2.0, size=pairs)
    labels = rng.random(pairs) < 1 / (1 + np.exp(-(slope * z + intercept)))
    return 1 / (1 + np.exp(-z)), labels.astype(int), z


@pytest.mark.parametrize(("slope", "intercept", "method"), [(0.4, 0.0, "temperature"), (0.5, -1.5, "platt")])
def test_finds_what_made_the_labels(slope, intercept, method):
    p, labels, _ = known(slope, intercept)
    fitted = fit_calibration(p, labels)
    if method == "platt":
        assert fitted.method == "platt"
        assert fitted.held_out["platt"] > fitted.held_out["temperature"] + 0.01
    assert fitted.slope == pytest.approx(slope, abs=0.03)
    assert fitted.intercept == pytest.approx(intercept, abs=0.06)
    assert reliability(p, labels).error > 0.05
    fresh, fresh_labels, _ = known(slope, intercept, seed=1)
    assert reliability(fitted(torch.tensor(fresh)), fresh_labels).error < 0.015
    assert fitted.held_out[fitted.method] > fitted.held_out["uncalibrated"]


def test_platt_is_logistic_regression():
    p, labels, z = known(0.7, 0.4, pairs=3000)
    fitted = fit_calibration(p, labels, method="platt")
    theirs = LogisticRegression(C=1e10, tol=1e-10).fit(z[:, None], labels)
    assert fitted.slope == pytest.approx(theirs.coef_[0, 0], rel=5e-3)  # Platt's targets are a little softer
    assert fitted.intercept == pytest.approx(theirs.intercept_[0], abs=5e-3)


class TestFused:
    """P(match) = σ(a s/τ + b z + c) of both stages' evidence."""

    @staticmethod
    def known(a, b, c, pairs=20_000, seed=0):
        rng = np.random.default_rng(seed)
        z, s = rng.normal(scale=2.0, size=pairs), rng.normal(8.0, 3.0, size=pairs)
        labels = rng.random(pairs) < 1 / (1 + np.exp(-(a * s + b * z + c)))
        return z, s, labels.astype(int)

    def test_finds_what_made_the_labels(self):
        z, s, labels = self.known(0.6, 1.2, -5.0)
        fitted = fit_log_odds(z, labels, s)
        assert fitted.method == "fused"
        assert set(fitted.held_out) == {"uncalibrated", "temperature", "platt", "fused"}
        assert fitted.held_out["fused"] > fitted.held_out["platt"] + 0.05
        found = fitted.similarity_slope, fitted.slope, fitted.intercept
        assert found == pytest.approx((0.6, 1.2, -5.0), rel=0.06)
        fresh, similarity, fresh_labels = self.known(0.6, 1.2, -5.0, seed=1)
        probability = fitted.of_log_odds(torch.tensor(fresh), torch.tensor(similarity))
        assert reliability(probability, fresh_labels).error < 0.015

    def test_is_logistic_regression(self):
        z, s, labels = self.known(0.5, 0.7, -4.0, pairs=3000)
        fitted = fit_log_odds(z, labels, s, method="fused")
        theirs = LogisticRegression(C=1e10, tol=1e-10).fit(np.stack([z, s], axis=1), labels)
        assert [fitted.slope, fitted.similarity_slope] == pytest.approx(theirs.coef_[0].tolist(), rel=1e-2)

    def test_evidence_that_speaks_against_itself_is_left_out(self):
        z, s, labels = self.known(-0.3, 1.0, 2.0)
        fitted = fit_log_odds(z, labels, s)
        assert fitted.held_out["fused"] > fitted.held_out["platt"]
        assert (fitted.method, fitted.similarity_slope) == ("platt", None)
        with pytest.raises(ValueError, match="order round"):
            fit_log_odds(z, labels, s, method="fused")

    def test_needs_the_similarity(self):
        z, s, labels = self.known(0.6, 1.2, -5.0, pairs=500)
        with pytest.raises(ValueError, match="use 'best' or one of temperature, platt"):
            fit_log_odds(z, labels, method="fused")
        with pytest.raises(ValueError, match="same length"):
            fit_log_odds(z, labels, s[:-1])
        with pytest.raises(ValueError, match="must be finite"):
            fit_log_odds(z, labels, np.where(np.arange(500) == 3, np.nan, s))
        fitted = fit_log_odds(z, labels, s, method="fused")
        with pytest.raises(ValueError, match="give cosine / temperature"):
            fitted(torch.tensor([0.5]))
        with pytest.raises(ValueError, match="'fused' has one"):
            Calibration("platt", 1.0, 0.0, 0.5, 10, {}, similarity_slope=1.0)
        by_probability = fitted(torch.tensor([0.5]), torch.tensor([2.0]))
        torch.testing.assert_close(by_probability, fitted.of_log_odds(torch.tensor([0.0]), torch.tensor([2.0])))

    def test_of_a_gallery(self, model_folder):
        """Hard wrong pairs are drawn by pre-ranking: its evidence is weighed on uniform ones alone."""
        names = list("猫狗马鱼鸟车船山水火木天")
        gallery = Gallery([tiny_image(seed) for seed in range(12)], names, names, [[name] for name in names])
        fitted, found = calibrate_model(model_folder, gallery, "uniform", 4)
        assert "fused" in fitted.held_out
        assert found.labels.sum() == 12
        assert set(measure(found, fitted)) == {"before", "after"}
        with pytest.raises(ValueError, match="fit it on uniform ones"):
            calibrate_model(model_folder, gallery, "hard", method="fused")


def test_log_odds_beyond_what_a_probability_holds():
    """z of 40 is a probability of 1 in float64 too, and not of 1 where the slope is a fortieth."""
    fitted = Calibration("platt", 0.025, 0.0, 0.5, 10, {})
    found = fitted.of_log_odds(torch.tensor([40.0, 80.0]))
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([1.0, 2.0])))


def test_a_calibration_of_an_earlier_release(tmp_path):
    held = {"method": "platt", "slope": 0.5, "intercept": 0.1, "true_share": 0.3, "pairs": 40, "held_out": {}}
    (tmp_path / "calibration.json").write_text(json.dumps({**held, "prior": None, "ranker": None}))
    assert Calibration.load(tmp_path) == Calibration(**held)
    assert Calibration.load(tmp_path).similarity_slope is None


def test_separable_classes_stay_finite():
    fitted = fit_calibration([0.9] * 10 + [0.1] * 10, [1] * 10 + [0] * 10)
    assert 0 < float(fitted(torch.tensor(0.1))) < 0.2 < 0.8 < float(fitted(torch.tensor(0.9))) < 1


def test_prior():
    """Bayes: odds are multiplied by the ratio of the odds of the two shares."""
    p, labels, _ = known(1.0, 0.0)
    fitted = fit_calibration(p, labels, prior=0.01)
    before = fitted.with_prior(None)(torch.tensor([0.2, 0.7])).double()
    share = labels.mean()
    odds = before / (1 - before) * (0.01 / 0.99) / (share / (1 - share))
    torch.testing.assert_close(fitted(torch.tensor([0.2, 0.7])).double(), odds / (1 + odds), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="prior"):
        fitted.with_prior(1.5)


def test_extreme_probabilities_stay_ordered():
    values = Calibration("platt", 0.5, 0.1, 0.5, 10, {})(torch.tensor([0.0, 1e-5, 0.5, 1 - 1e-5, 1.0]))
    assert bool((values.diff() > 0).all())
    assert values.isfinite().all()


@pytest.mark.parametrize(
    ("probability", "labels", "message"),
    [
        ([0.5] * 20, [1] * 20, "0 false"),
        ([0.5] * 20, [1] * 17 + [0] * 3, "3 false"),
        ([0.5] * 20, [1] * 10, "same length"),
        ([1.5] * 20, [1, 0] * 10, "within"),
        ([float("nan")] * 20, [1, 0] * 10, "within"),
        ([0.5] * 20, [2, 0] * 10, "0 or 1"),
        ([0.9, 0.1] * 10, [0, 1] * 10, "order round"),
    ],
)
def test_pairs_that_do_not_serve(probability, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(probability, labels)


def test_reliability_by_hand():
    p, labels = [0.1, 0.2, 0.6, 0.8], [0, 1, 1, 1]
    curve = reliability(p, labels, bins=2)
    assert curve.probability == pytest.approx([0.15, 0.7])
    assert curve.true_share == [0.5, 1.0]
    assert curve.error == pytest.approx((0.35 + 0.3) / 2)
    assert reliability([0.3], [1]).error == pytest.approx(0.7)
    with pytest.raises(ValueError, match="0 probabilities"):
        reliability([], [])


def test_thresholds_by_hand():
    p, labels = [0.9, 0.8, 0.8, 0.5, 0.3], [1, 1, 0, 1, 0]
    assert threshold_for(p, labels, precision=0.7).probability == 0.5
    found = threshold_for(p, labels, precision=0.9)
    assert (found.probability, found.precision, found.recall) == (0.9, 1.0, pytest.approx(1 / 3))
    found = threshold_for(p, labels, recall=0.6)  # the two of 0.8 come together; 0.5 is the more precise way
    assert (found.probability, found.precision, found.recall) == (0.5, 0.75, 1.0)
    for wanted in ({}, {"precision": 0.5, "recall": 0.5}):
        with pytest.raises(ValueError, match="precision or"):
            threshold_for(p, labels, **wanted)
    with pytest.raises(ValueError, match="best is 0.500"):
        threshold_for([0.9, 0.8], [0, 1], precision=0.9)
    with pytest.raises(ValueError, match="no true pair"):
        threshold_for([0.9], [0], recall=0.5)


def test_plot(tmp_path):
    from PIL import Image

    curve = reliability(*known(1.0, 0.0, pairs=500)[:2])
    path = reliability_plot({"before": curve, "after": curve}, tmp_path / "deep" / "plot.png")
    assert Image.open(path).width > 800


def test_stored_with_the_model(model, model_folder, tmp_path, caplog):
    folder = tmp_path / "copy"
    model.save_pretrained(folder)
    assert Calibration.of_model(folder, model) is None
    fitted = Calibration("platt", 0.5, 0.1, 0.3, 40, {"platt": -0.5}, 0.2, identity_of_weights(model))
    assert fitted.save(folder) == folder / "calibration.json"
    assert Calibration.of_model(folder, model) == fitted
    with torch.no_grad():
        model.text_image_match_head.bias += 1
    try:
        assert Calibration.of_model(folder, model) is None
        assert "calibrate" in caplog.text
    finally:
        with torch.no_grad():
            model.text_image_match_head.bias -= 1
    (folder / "calibration.json").write_text('{"slope": 1')
    with pytest.raises(ValueError, match="no calibration"):
        Calibration.of_model(folder, model)
    with pytest.raises(FileNotFoundError, match="no folder"):
        fitted.save(tmp_path / "nowhere")


def test_uniform_pairs():
    ids = list("aabcde")
    positives = positive_pairs(ids, ids)
    pairs = draw_pairs(positives, per_positive=3)
    labels = [int(ids[t] == ids[i]) for t, i in zip(pairs.text_index, pairs.image_index, strict=True)]
    assert pairs.labels.tolist() == labels
    assert (sum(labels), len(labels)) == (8, 8 * 4)
    again = draw_pairs(positives, per_positive=3)
    assert again.image_index.equal(pairs.image_index)
    assert not draw_pairs(positives, per_positive=3, seed=1).image_index.equal(pairs.image_index)
    with pytest.raises(ValueError, match="one kind only"):
        draw_pairs(positive_pairs(["a"], ["a"]))


def test_hard_pairs_follow_the_logits():
    positives, logits = torch.eye(40, dtype=torch.bool), torch.zeros(40, 40)
    logits[:, 7] = 7
    pairs = draw_pairs(positives, "hard", per_positive=1, logits=logits)
    wrong = pairs.image_index[pairs.labels == 0]
    assert (wrong == 7).float().mean() > 0.8
    with pytest.raises(ValueError, match="drawn by a model"):
        draw_pairs(positives, "hard")


def test_as_many_hard_pairs_as_there_are():
    """Also where all but one are beyond what a softmax holds."""
    logits = torch.zeros(5, 5)
    logits[:, 2] = 1e4
    pairs = draw_pairs(torch.eye(5, dtype=torch.bool), "hard", per_positive=9, logits=logits)
    wrong = torch.stack([pairs.text_index, pairs.image_index], dim=1)[pairs.labels == 0].tolist()
    assert sorted(wrong) == [[text, image] for text in range(5) for image in range(5) if text != image]


def test_similarity_logits(model, processor):
    texts = encode_texts(model, processor, ["一只猫", "马", "小船"])
    images = encode_images(model, processor, [tiny_image(seed) for seed in range(2)])
    cosine = texts.embeds.numpy() @ images.embeds.numpy().T
    found = similarity_logits(model, texts, images)
    np.testing.assert_allclose(found.numpy(), cosine / model.temperature.item(), atol=1e-4)


def test_json_holds_plain_numbers():
    p, labels, _ = known(1.0, 0.2, pairs=400)
    from dataclasses import asdict

    text = json.dumps(asdict(fit_calibration(p, labels)))
    assert math.isfinite(json.loads(text)["slope"])

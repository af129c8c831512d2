"""Matching metrics against sklearn and plain loops; lists of pairs; probabilities of pairs."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from modeling_r2d2.evaluation.matching_auc import MatchingAUC
from modeling_r2d2.evaluation.matching_pairs import MatchingPairs, make_matching_pairs, pair_probabilities
from modeling_r2d2.inference.bootstrap import Bootstrap
from modeling_r2d2.inference.matching import best_threshold, matching_metrics, roc_auc
from modeling_r2d2.processing.datasets.gallery import Gallery
from tests.helpers import tiny_image, tiny_model, tiny_processor

TEXTS = ["一只猫", "马", "两条红色的鱼在水", "小船", "一张山水人天地的图片", "狗狗狗", "马"]


def pairwise_auc(scores, labels) -> float:
    """Share of (matching, other) pairs in the right order, ties a half."""
    right = [s for s, y in zip(scores, labels, strict=True) if y]
    wrong = [s for s, y in zip(scores, labels, strict=True) if not y]
    return 100 * sum((r > w) + (r == w) / 2 for r in right for w in wrong) / (len(right) * len(wrong))


def scan_accuracy(scores, labels) -> float:
    return 100 * max(((np.asarray(scores) >= t) == labels).mean() for t in {*scores, np.inf})


@pytest.mark.parametrize("levels", [4, 10_000])  # four levels: many ties
def test_against_sklearn_and_loops(levels):
    generator = np.random.default_rng(levels)
    labels = generator.integers(0, 2, 80)
    scores = (generator.integers(0, levels, 80) + labels) / levels
    assert roc_auc(scores, labels) == pytest.approx(100 * roc_auc_score(labels, scores))
    assert roc_auc(scores, labels) == pytest.approx(pairwise_auc(scores, labels))
    threshold, accuracy = best_threshold(scores, labels)
    assert accuracy == pytest.approx(scan_accuracy(scores, labels))
    assert accuracy == pytest.approx(100 * accuracy_score(labels, scores >= threshold))


def test_nothing_called_a_match_may_be_best():
    assert best_threshold([0.9, 0.8, 0.1], [0, 0, 1]) == (float("inf"), pytest.approx(200 / 3))
    assert roc_auc([0.5, 0.5], [0, 1]) == 50


def test_intervals_equal_a_loop_over_resamples():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 40)
    scores = np.round(generator.random(40) + 0.3 * labels, 1)
    bootstrap = Bootstrap(200, 0.9, seed=5)
    _, intervals = matching_metrics(scores, labels, bootstrap)
    draws = np.random.default_rng(5).integers(0, 40, (200, 40))
    aucs, accuracies = [], []
    for drawn in draws:
        aucs.append(100 * roc_auc_score(labels[drawn], scores[drawn]))
        accuracies.append(scan_accuracy(scores[drawn], labels[drawn]))
    assert intervals["auc"] == pytest.approx(np.percentile(aucs, [5, 95]))
    assert intervals["accuracy"] == pytest.approx(np.percentile(accuracies, [5, 95]))
    assert matching_metrics(scores, labels, Bootstrap(0))[1] == {}


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([0.1, np.nan], [0, 1], "1 of 2 scores are NaN, the first is pair 1"),
        ([0.1, 0.2], [0, 2], "must be 1"),
        ([0.1, 0.2], [1, 1], "all of one kind"),
        ([], [], "all of one kind"),
        ([0.1], [0, 1], "not two lists of one length"),
    ],
)
def test_wrong_input(scores, labels, reason):
    with pytest.raises(ValueError, match=reason):
        matching_metrics(scores, labels)


def test_evaluate_module_alone():
    import evaluate

    from modeling_r2d2.evaluation import matching_auc

    scores, labels = [0.9, 0.2, 0.6, 0.7], [1, 0, 1, 0]
    for metric in (MatchingAUC(), evaluate.load(matching_auc.__file__)):
        for score, label in zip(scores, labels, strict=True):
            metric.add(prediction=score, reference=label)
        assert metric.compute() == {"auc": 75.0, "accuracy": 75.0, "threshold": 0.9}
        assert metric.compute(predictions=scores, references=labels)["auc"] == 75.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def gallery():
    """Six pictures and one without a text; the caption 马 stands with two of them."""
    owners = [["p0"], ["p1"], ["p2"], ["p3"], ["p4"], ["p5"], ["p5"]]
    return Gallery([tiny_image(seed) for seed in range(7)], [f"p{n}" for n in range(7)], TEXTS, owners)


class TestLists:
    def test_negatives_are_never_true(self, gallery):
        for seed in range(20):
            pairs = make_matching_pairs(gallery, seed=seed)
            assert pairs.labels == [1] * 7 + [0] * (7 + 6)
            assert pairs.image_ids[:7] == ["p0", "p1", "p2", "p3", "p4", "p5", "p5"]
            assert pairs.texts[:14] == TEXTS * 2
            assert pairs.image_ids[14:] == [f"p{n}" for n in range(6)]
            truth = {*zip(["p0", "p1", "p2", "p3", "p4", "p5", "p5"], TEXTS, strict=True), ("p1", "马"), ("p5", "马")}
            wrong = set(zip(pairs.image_ids[7:], pairs.texts[7:], strict=True))
            assert not wrong & truth

    def test_uniform(self, gallery):
        drawn = [make_matching_pairs(gallery, seed=seed).image_ids[7] for seed in range(400)]
        shares = np.array([drawn.count(f"p{n}") for n in range(7)]) / 400
        assert shares[0] == 0
        assert np.abs(shares[1:] - 1 / 6).max() < 0.07
        assert make_matching_pairs(gallery, seed=3) == make_matching_pairs(gallery, seed=3)

    def test_as_fgr_draws(self, gallery, model, processor):
        """Shares of the drawn pictures of one text follow softmax(cosine / temperature) without the right ones."""
        with torch.no_grad():
            inputs = processor(images=list(gallery.images), text=TEXTS, return_tensors="pt")
            logits = model(**inputs).logits_per_text
            logits[0, 0] = -torch.inf
            expected = logits[0].softmax(dim=0).numpy()
        drawn = [make_matching_pairs(gallery, "fgr", seed, model, processor).image_ids[7] for seed in range(60)]
        shares = np.array([drawn.count(f"p{n}") for n in range(7)]) / 60
        assert shares[0] == 0
        assert np.abs(shares - expected).max() < 0.2
        assert shares.argmax() == expected.argmax()
        with pytest.raises(ValueError, match="give model and processor"):
            make_matching_pairs(gallery, "fgr")
        with pytest.raises(ValueError, match="use 'uniform' or 'fgr'"):
            make_matching_pairs(gallery, "hard")

    def test_nothing_wrong_to_draw(self):
        with pytest.raises(ValueError, match="describes every picture"):
            make_matching_pairs(Gallery([tiny_image()], ["a"], ["马"], [["a"]]))

    def test_save_and_load(self, gallery, tmp_path):
        pairs = make_matching_pairs(gallery)
        path = tmp_path / "lists" / "uniform.jsonl"
        pairs.save(path)
        loaded = MatchingPairs.load(path)
        assert loaded == pairs
        assert loaded.image_index(gallery)[:7] == [0, 1, 2, 3, 4, 5, 5]
        lines = path.read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[0]) == {"matching_pairs": 1, "negatives": "uniform", "seed": 0, "pairs": 20}
        for broken, reason in (
            (lines[:-1], "19 pairs, 20 were written"),
            (lines[1:], r"uniform\.jsonl:1: not a list"),
            ([*lines[:3], "{"], r"uniform\.jsonl:4: not JSON"),
            ([*lines[:3], "[]"], r"uniform\.jsonl:4: a JSON list"),
            ([*lines[:3], '{"text": "马"}'], r"uniform\.jsonl:4: has \['text'\]"),
            ([*lines[:3], '{"text": "马", "image_id": "p1", "label": 3}'], r"uniform\.jsonl:4: the label is 3"),
        ):
            path.write_text("\n".join(broken), encoding="utf-8")
            with pytest.raises(ValueError, match=reason):
                MatchingPairs.load(path)

    def test_another_data_set(self, gallery):
        other = MatchingPairs(["p0", "p9"], ["一只猫", "马"], [1, 0])
        with pytest.raises(ValueError, match="line 3 of the list names the picture 'p9'"):
            other.image_index(gallery)
        with pytest.raises(ValueError, match="line 2 of the list names the text '车'"):
            MatchingPairs(["p0"], ["车"], [1]).image_index(gallery)


@pytest.mark.parametrize("batch_size", [3, 100])
def test_probabilities_equal_one_pair_at_a_time(gallery, model, processor, batch_size):
    pairs = make_matching_pairs(gallery)
    index = pairs.image_index(gallery)
    found = pair_probabilities(model, processor, gallery.images, index, pairs.texts, batch_size)
    for place, text, probability in zip(index, pairs.texts, found, strict=True):
        inputs = processor(images=gallery.images[place], text=text, return_tensors="pt")
        with torch.no_grad():
            alone = model.match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        assert probability == pytest.approx(alone.match_probability.item(), abs=1e-5)
    assert found.std() > 1e-3, "the test needs probabilities that differ"


def test_a_model_without_ranker(gallery, processor):
    with pytest.raises(ValueError, match="pre-ranking only"):
        pair_probabilities(tiny_model(ranker=False), processor, gallery.images, [0], ["马"])

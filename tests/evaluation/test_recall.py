"""Recall@K against a plain-Python reading of its definition."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from modeling_r2d2.evaluation import first_hit_ranks, positive_pairs, recall_at, recall_both_ways, retrieval_metrics


def brute_force_rank(scores: list[float], positives: list[bool]) -> int:
    """Sort the gallery, wrong items first among equals; the place of the first right one."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], positives[i]))
    return next(place for place, item in enumerate(order, start=1) if positives[item])


def brute_force_recall(scores: np.ndarray, positives: np.ndarray, k: int) -> float:
    ranks = [brute_force_rank(s, p) for s, p in zip(scores.tolist(), positives.tolist(), strict=True)]
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


@pytest.mark.parametrize("levels", [3, 1000])  # three levels: many ties
def test_ranks_and_recall_equal_sorting(levels):
    generator = np.random.default_rng(levels)
    scores = generator.integers(0, levels, (40, 15)).astype(np.float32)
    positives = generator.random((40, 15)) < 0.15
    positives[np.arange(40), generator.integers(0, 15, 40)] = True
    ranks = first_hit_ranks(torch.from_numpy(scores), torch.from_numpy(positives))
    expected = [brute_force_rank(s, p) for s, p in zip(scores.tolist(), positives.tolist(), strict=True)]
    assert ranks.tolist() == expected
    for k, value in recall_at(ranks, (1, 3, 10, 99)).items():
        assert value == pytest.approx(brute_force_recall(scores, positives, k))


def test_a_collapsed_model_has_no_recall():
    ranks = first_hit_ranks(torch.zeros(5, 5), torch.eye(5, dtype=torch.bool))
    assert ranks.tolist() == [5] * 5
    assert recall_at(ranks, (1, 4, 5)) == {1: 0, 4: 0, 5: 100}


def test_nan_counts_against_the_model():
    eye = torch.eye(3, dtype=torch.bool)
    assert first_hit_ranks(torch.full((3, 3), torch.nan), eye).tolist() == [3, 3, 3]
    scores = torch.eye(3)
    scores[0, 1] = torch.nan
    assert first_hit_ranks(scores, eye).tolist() == [2, 1, 1]


def test_equal_right_items_do_not_push_each_other_down():
    scores = torch.tensor([[0.9, 0.9, 0.1]])
    assert first_hit_ranks(scores, torch.tensor([[True, True, False]])).tolist() == [1]
    assert first_hit_ranks(scores, torch.tensor([[True, False, False]])).tolist() == [2]


def test_positive_pairs_by_identity():
    positives = positive_pairs(["a", "b", "a"], ["b", "a", ["a", "b"], ("b",), "c"])
    assert positives.tolist() == [
        [False, True, False],
        [True, False, True],
        [True, True, True],
        [False, True, False],
        [False, False, False],
    ]
    assert positive_pairs(torch.tensor([7, 8]), np.array([8, 7])).tolist() == [[False, True], [True, False]]


def test_query_without_a_right_item_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries have no right item.*query 1"):
        first_hit_ranks(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))
    with pytest.raises(ValueError, match="differ in shape"):
        first_hit_ranks(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="empty"):
        recall_at(torch.zeros(0, dtype=torch.int64))


def test_both_ways_use_their_own_scores():
    eye = torch.eye(4, dtype=torch.bool)
    figures = recall_both_ways(torch.eye(4), torch.eye(4).flip(0), eye, ks=(1, 4))
    assert figures["text_to_image_r1"] == 100
    assert figures["image_to_text_r1"] == 0
    assert figures["mean_recall"] == pytest.approx((100 + 100 + 0 + 100) / 4)


class TestRetrievalMetrics:
    """`compute_metrics` of a Trainer."""

    @staticmethod
    def captions(images: int, captions: int, noise: float, seed: int = 0):
        """Every picture `captions` times, as an evaluation set of pairs yields it, in random order."""
        generator = np.random.default_rng(seed)
        image = generator.normal(size=(images, 8))
        image /= np.linalg.norm(image, axis=1, keepdims=True)
        ids = np.repeat(np.arange(images), captions)
        generator.shuffle(ids)
        text = image[ids] + noise * generator.normal(size=(len(ids), 8))
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        return text.astype(np.float32), image[ids].astype(np.float32), ids + 100

    def test_images_with_several_captions_are_in_the_gallery_once(self):
        text, image, ids = self.captions(images=12, captions=5, noise=0.6)
        figures = retrieval_metrics(EvalPrediction((text, image), ids))
        gallery = {identity: row for row, identity in reversed(list(enumerate(ids.tolist())))}
        images = image[list(gallery.values())]
        right = ids[:, None] == np.array(list(gallery))[None, :]
        for k in (1, 5, 10):
            assert figures[f"text_to_image_r{k}"] == pytest.approx(brute_force_recall(text @ images.T, right, k))
            assert figures[f"image_to_text_r{k}"] == pytest.approx(brute_force_recall(images @ text.T, right.T, k))
        assert 0 < figures["text_to_image_r1"] < 100

    def test_labels_may_come_as_a_tuple_of_one(self):
        text, image, ids = self.captions(4, 1, 0.0)
        assert retrieval_metrics(EvalPrediction((text, image), (ids,)))["mean_recall"] == 100

    @pytest.mark.parametrize(
        ("predictions", "labels", "message"),
        [
            ((np.eye(3), np.eye(3)), None, 'label_names=\\["image_ids"\\]'),
            ((np.eye(3), np.eye(3), np.eye(3)), np.arange(3), "text_embeds, image_embeds"),
            ((np.ones(3), np.ones(3)), np.arange(3), "text_embeds, image_embeds"),
            ((np.eye(3), np.eye(3)), np.arange(4), "4 image ids"),
        ],
    )
    def test_other_predictions_are_refused(self, predictions, labels, message):
        with pytest.raises(ValueError, match=message):
            retrieval_metrics(EvalPrediction(predictions, labels))

    def test_in_the_stock_trainer(self, tmp_path):
        from transformers import Trainer, TrainingArguments

        from modeling_r2d2 import R2D2ForPreTraining
        from tests.tiny import tiny_batch, tiny_config

        batch = tiny_batch(10)
        samples = [{name: tensor[row] for name, tensor in batch.items()} for row in range(10)]
        trainer = Trainer(
            R2D2ForPreTraining(tiny_config()),
            TrainingArguments(
                str(tmp_path),
                per_device_eval_batch_size=4,
                label_names=["image_ids"],
                report_to="none",
                use_cpu=True,
            ),
            eval_dataset=samples,
            compute_metrics=retrieval_metrics,
        )
        figures = trainer.evaluate()
        model = trainer.model.eval()
        with torch.no_grad():
            output = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}, return_loss=False)
        expected = brute_force_recall(output.logits_per_text.numpy(), np.eye(10, dtype=bool), 5)
        assert figures["eval_text_to_image_r5"] == pytest.approx(expected)
        assert figures["eval_text_to_image_r10"] == 100


def test_metric_of_the_evaluate_library():
    from pathlib import Path

    import evaluate

    import modeling_r2d2.evaluation

    folder = Path(modeling_r2d2.evaluation.__file__).parent
    metric = evaluate.load(str(folder / "recall_at_k.py"))
    scores = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    metric.add_batch(predictions=scores[:4].tolist(), references=[[0], [1], [2, 3], [4]])
    metric.add_batch(predictions=scores[4:].tolist(), references=[[5], [0], [1], [2], [3, 4]])
    right = np.zeros((9, 6), dtype=bool)
    for row, columns in enumerate([[0], [1], [2, 3], [4], [5], [0], [1], [2], [3, 4]]):
        right[row, columns] = True
    figures = metric.compute(ks=[1, 3])
    assert figures == {k: pytest.approx(brute_force_recall(scores, right, int(k[1:]))) for k in ("r1", "r3")}

"""The runner end to end on tiny models: every task, kept results, reports, intervals."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModel, AutoProcessor

from modeling_r2d2.evaluation import evaluate_retrieval, recall_both_ways
from modeling_r2d2.evaluation.matching_pairs import make_matching_pairs
from modeling_r2d2.evaluation.published import PUBLISHED, published_recalls, published_table
from modeling_r2d2.evaluation.results import EvaluationResult, markdown_report, metric_title, write_report
from modeling_r2d2.evaluation.retrieval import score_both_ways
from modeling_r2d2.evaluation.runner import evaluate_models, read_captions, recalls_with_intervals
from modeling_r2d2.evaluation.settings import EvaluationSettings
from modeling_r2d2.inference.bootstrap import Bootstrap
from modeling_r2d2.inference.identity import identity_of_folder
from modeling_r2d2.processing.datasets.gallery import Gallery, data_hash, open_pairs
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

ROWS = [
    ("0.png", "一只猫"),
    ("0.png", "小猫"),
    ("1.png", "马"),
    ("2.png", "两条红色的鱼"),
    ("3.png", "小船"),
    ("4.png", "马"),
]
FEW = Bootstrap(50)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(5):
        tiny_image(number).save(folder / f"{number}.png")
    lines = [json.dumps({"image": image, "text": text}) for image, text in ROWS]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two R2D2 and a PRD2."""
    folder = tmp_path_factory.mktemp("models")
    for name, ranker in (("one", True), ("two", True), ("prd2", False)):
        torch.manual_seed(len(name) + (name == "two"))
        tiny_model(ranker=ranker).save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    return folder


def settings(data, task="retrieval", **more) -> EvaluationSettings:
    return EvaluationSettings(task, str(data / "pairs.jsonl"), bootstrap=FEW, **more)


class TestGallery:
    def test_images_once_texts_all(self, data):
        gallery = Gallery.from_pairs(open_pairs(data / "pairs.jsonl"))
        assert gallery.image_ids == ["0.png", "1.png", "2.png", "3.png", "4.png"]
        assert gallery.texts == [text for _, text in ROWS]
        assert gallery.text_ids == [[image] for image, _ in ROWS]
        assert gallery.positives().int().argmax(dim=1).tolist() == [0, 0, 1, 2, 3, 4]
        assert gallery.captions() == [["一只猫", "小猫"], ["马"], ["两条红色的鱼"], ["小船"], ["马"]]
        assert np.array_equal(np.asarray(gallery.images[2]), np.asarray(tiny_image(2)))

    def test_texts_of_several_images_and_images_of_none(self, tmp_path):
        lines = []
        for number in range(3):
            buffer = io.BytesIO()
            tiny_image(number).save(buffer, "PNG")
            lines.append(f"{number}\t{base64.b64encode(buffer.getvalue()).decode()}")
        (tmp_path / "valid_imgs.tsv").write_text("\n".join(lines))
        rows = [{"text_id": 1, "text": "猫", "image_ids": [0, 2]}, {"text_id": 2, "text": "猫", "image_ids": [0]}]
        (tmp_path / "valid_texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        pairs = open_pairs(tmp_path, format="chinese-clip")
        gallery = Gallery.from_pairs(pairs)
        assert gallery.image_ids == ["0", "2", "1"]
        assert gallery.text_ids == [["0", "2"], ["0"]]
        assert gallery.positives().tolist() == [[True, True, False], [True, False, False]]
        assert np.array_equal(np.asarray(gallery.images[2]), np.asarray(tiny_image(1)))
        before = data_hash(pairs)
        (tmp_path / "valid_imgs.tsv").write_text("\n".join([lines[0], lines[1], "2" + lines[1][1:]]))
        assert data_hash(open_pairs(tmp_path, format="chinese-clip")) != before

    def test_labelled_pairs_are_no_gallery(self, data, tmp_path):
        (data / "labelled.jsonl").write_text('{"image": "0.png", "text": "猫", "label": 0}\n')
        with pytest.raises(ValueError, match="task matching"):
            Gallery.from_pairs(open_pairs(data / "labelled.jsonl", columns={"label": "label"}))


class TestRecalls:
    def scores(self, texts=30, images=10):
        generator = np.random.default_rng(0)
        owners = np.r_[np.arange(images), generator.integers(0, images, texts - images)]
        positives = torch.from_numpy(owners[:, None] == np.arange(images))
        scores = torch.from_numpy(generator.random((texts, images))) + 0.3 * positives
        return owners, positives, scores

    def test_equal_recall_both_ways(self):
        _, positives, scores = self.scores()
        found, intervals = recalls_with_intervals(scores, scores.t(), positives, (1, 3))
        assert found == pytest.approx(recall_both_ways(scores, scores.t(), positives, (1, 3)))
        assert intervals == {}

    def test_intervals_equal_a_loop_over_resampled_images(self):
        owners, positives, scores = self.scores()
        _, intervals = recalls_with_intervals(scores, scores.t(), positives, (1,), Bootstrap(200, seed=4))
        hit = (scores.argmax(dim=1).numpy() == owners).astype(float)
        draws = np.random.default_rng(4).integers(0, 10, (200, 10))
        recalls = []
        for drawn in draws:
            texts = np.concatenate([np.flatnonzero(owners == image) for image in drawn])
            recalls.append(100 * hit[texts].mean())
        assert intervals["text_to_image_r1"] == pytest.approx(np.percentile(recalls, [2.5, 97.5]))

    def test_images_without_texts_are_in_the_gallery_and_no_queries(self):
        _, positives, scores = self.scores()
        wide = torch.cat([scores, torch.full((30, 1), 9.0, dtype=scores.dtype)], dim=1)
        right = torch.cat([positives, torch.zeros(30, 1, dtype=torch.bool)], dim=1)
        found, _ = recalls_with_intervals(wide, wide.t(), right, (1, 2))
        alone, _ = recalls_with_intervals(scores, scores.t(), positives, (1, 2))
        assert found["text_to_image_r1"] == 0
        assert found["text_to_image_r2"] == pytest.approx(alone["text_to_image_r1"])
        assert found["image_to_text_r1"] == pytest.approx(alone["image_to_text_r1"])

    def test_bootstrap_arguments(self):
        for values, reason in (({"resamples": -1}, "resamples is -1"), ({"confidence": 95}, "confidence is 95")):
            with pytest.raises(ValueError, match=reason):
                Bootstrap(**values)
        with pytest.raises(ValueError, match="no units"):
            FEW.intervals(0, lambda counts: counts)


def of_stage(result, stage):
    """The metrics of one stage, by their last names."""
    return {name.removeprefix(f"{stage}."): v for name, v in result.metrics.items() if name.startswith(f"{stage}.")}


class TestTasks:
    @pytest.mark.parametrize("rule", [None, "published"])
    def test_retrieval_of_two_models(self, data, models, rule):
        chosen = settings(data, two_stage=True, candidates=3, score=rule)
        results = evaluate_models(chosen, [models / "one", models / "two"])
        assert [result.model for result in results] == ["one", "two"]
        from transformers import AutoModel

        gallery = Gallery.from_pairs(open_pairs(data / "pairs.jsonl"))
        ids = gallery.image_ids, gallery.text_ids
        for result in results:
            model = AutoModel.from_pretrained(models / result.model).eval()
            expected = evaluate_retrieval(model, tiny_processor(), gallery.images, gallery.texts, *ids, candidates=3)
            own, other = ("fused", "published") if rule is None else ("published", "fused")
            by_score = expected.two_stage_by_score
            stages = {"two_stage": by_score[own], f"two_stage_{other}": by_score[other]}
            for stage, figures in {"pre_ranking": expected.pre_ranking, **stages}.items():
                assert of_stage(result, stage) == pytest.approx(figures)
            assert result.settings["score"] == (rule or "fused")
        assert set(results[0].intervals) == set(results[0].metrics)
        assert results[0].counts == {"pictures": 5, "texts": 6}

    def test_a_table_of_models_with_other_scores(self):
        results = [
            EvaluationResult("retrieval", "x", name, {"two_stage.mean_recall": 1.0}, settings={"score": rule})
            for name, rule in (("one", "fused"), ("two", "published"))
        ]
        table = markdown_report(results)
        assert "score: of one fused (cosine / τ + log-odds), of two published (cosine + probability)" in table

    def test_prd2_has_no_match_probability(self, data, models, tmp_path):
        with pytest.raises(ValueError, match="prd2 is pre-ranking only.*leave --two-stage out"):
            evaluate_models(settings(data, two_stage=True), [models / "prd2"])
        path = tmp_path / "list.jsonl"
        make_matching_pairs(Gallery.from_pairs(open_pairs(data / "pairs.jsonl"))).save(path)
        with pytest.raises(ValueError, match="prd2 is pre-ranking only.*task retrieval"):
            evaluate_models(settings(data, "matching", pairs=path), [models / "prd2"])
        (result,) = evaluate_models(settings(data), [models / "prd2"])
        assert not any(name.startswith("two_stage") for name in result.metrics)

    def test_matching_by_list_and_by_labels(self, data, models, tmp_path):
        gallery = Gallery.from_pairs(open_pairs(data / "pairs.jsonl"))
        path = tmp_path / "list.jsonl"
        listed = make_matching_pairs(gallery)
        listed.save(path)
        (by_list,) = evaluate_models(settings(data, "matching", pairs=path), [models / "one"])
        assert by_list.counts == {"matching pairs": 6, "others": 11}
        assert by_list.settings["negatives"] == "uniform"
        lines = [
            json.dumps({"image": key, "text": text, "label": label})
            for key, text, label in zip(listed.image_ids, listed.texts, listed.labels, strict=True)
        ]
        (data / "same.jsonl").write_text("\n".join(lines), encoding="utf-8")
        labelled = EvaluationSettings(
            "matching", str(data / "same.jsonl"), {"columns": {"label": "label"}}, bootstrap=FEW
        )
        (by_label,) = evaluate_models(labelled, [models / "one"])
        assert by_label.metrics == pytest.approx(by_list.metrics)
        with pytest.raises(ValueError, match="has no labels: give a saved list"):
            evaluate_models(settings(data, "matching"), [models / "one"])

    def test_classification_of_pairs_and_of_a_folder(self, data, models, tmp_path):
        chosen = settings(data, "classification", prompts=["{}", "一张{}的图片"])
        (pairs,) = evaluate_models(chosen, [models / "prd2"])
        assert pairs.counts == {"pictures": 6, "classes": 5, "prompts": 2}
        for row, (image, text) in enumerate(ROWS):
            (tmp_path / text).mkdir(exist_ok=True)
            (tmp_path / text / f"{row}.png").write_bytes((data / image).read_bytes())
        folder = EvaluationSettings("classification", str(tmp_path), prompts=chosen.prompts, bootstrap=FEW)
        (same,) = evaluate_models(folder, [models / "prd2"])
        assert same.metrics == pytest.approx(pairs.metrics)

        def split(name, **more):
            reading = {"split": name, **more}
            chosen = EvaluationSettings("classification", str(tmp_path.parent), reading, bootstrap=FEW)
            return evaluate_models(chosen, [models / "prd2"])[0]

        assert split(tmp_path.name).counts["classes"] == 5
        with pytest.raises(FileNotFoundError, match="no folder of the split 'train'"):
            split("train")
        with pytest.raises(ValueError, match="--label belongs to lists of pairs"):
            split(tmp_path.name, columns={"label": "label"})

    def test_token_wise_models(self, data, tmp_path):
        torch.manual_seed(0)
        tiny_wukong("wukong").save_pretrained(tmp_path)
        tiny_wukong_processor().save_pretrained(tmp_path)
        (found,) = evaluate_models(settings(data), [tmp_path])
        pairs = open_pairs(str(data / "pairs.jsonl"))
        gallery = Gallery.from_pairs(pairs)
        model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
        scores = score_both_ways(model, processor, gallery.images, gallery.texts)
        expected = recall_both_ways(scores.cosine, scores.image_to_text, gallery.positives(), (1, 5, 10))
        assert found.metrics["pre_ranking.text_to_image_r1"] == pytest.approx(expected["text_to_image_r1"])
        assert found.metrics["pre_ranking.image_to_text_r5"] == pytest.approx(expected["image_to_text_r5"])
        (classes,) = evaluate_models(settings(data, "classification", prompts=["{}", "一张{}的图片"]), [tmp_path])
        assert classes.counts["classes"] == 5
        with pytest.raises(ValueError, match="pre-ranking only"):
            evaluate_models(settings(data, two_stage=True), [tmp_path])

    def test_captions_of_a_file(self, data, models, tmp_path):
        path = tmp_path / "captions.json"
        captions = {"4.png": "马", "0.png": "一只猫", "1.png": "狗", "2.png": "红色的鱼", "3.png": "船"}
        path.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in captions.items()]))
        (result,) = evaluate_models(settings(data, "captioning", captions=path), [])
        assert result.metrics["exact_match"] == 40
        assert result.counts == {"pictures": 5, "references": 6}
        with pytest.raises(ValueError, match="not both"):
            evaluate_models(settings(data, "captioning", captions=path), [models / "one"])

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            (['{"image_id": "a", "caption": "猫"}'], "no caption of 1 pictures, the first is 'b'"),
            (['{"image_id": "c", "caption": "猫"}'], r"captions\.jsonl:1: the picture 'c' is not in the data set"),
            (['{"image_id": "a", "caption": "猫"}'] * 2, r"captions\.jsonl:2: the picture 'a' has two captions"),
            (['{"image_id": "a"}'], r"captions\.jsonl:1: a caption is"),
            (["?"], r"captions\.jsonl:1: not JSON"),
        ],
    )
    def test_wrong_captions(self, tmp_path, rows, reason):
        path = tmp_path / "captions.jsonl"
        path.write_text("\n".join(rows), encoding="utf-8")
        with pytest.raises(ValueError, match=reason):
            read_captions(path, ["a", "b"])

    def test_settings_that_do_not_fit(self, data):
        for more, reason in (
            ({"task": "ranking"}, "task is 'ranking'"),
            ({"task": "matching", "two_stage": True}, "two_stage belongs to retrieval"),
            ({"candidates": 5}, "set two_stage"),
            ({"score": "fused"}, "set two_stage"),
            ({"two_stage": True, "score": "sum"}, "score is 'sum'"),
            ({"pairs": data}, "pairs belongs to the task matching"),
            ({"captions": data}, "captions belongs to the task captioning"),
            ({"labels": data}, "labels belongs to the task classification"),
        ):
            with pytest.raises(ValueError, match=reason):
                settings(data, **more)
        assert settings(data, two_stage=True).candidates == 128
        assert settings(data, two_stage=True, reading={"format": "icr"}).candidates == 64
        with pytest.raises(ValueError, match="no model"):
            evaluate_models(settings(data), [])


class TestKeptResults:
    def test_by_model_data_and_settings(self, data, models, tmp_path):
        message: list[str] = []

        def run(model=models / "one", **more):
            message.clear()
            return evaluate_models(settings(data, **more), [model], tmp_path / "cache", message.append)[0]

        first = run()
        assert "retrieval on pairs.jsonl" in message[0]
        again = run()
        assert "kept result" in message[0]
        assert again == first
        assert "kept" not in (run(ks=(1,)), message[0])[1]
        assert "kept" not in (run(models / "two"), message[0])[1]
        assert run(name="MUGE").data == "MUGE"
        assert "kept result" in message[0]
        (data / "0.png").touch()
        assert "kept" not in (run(), message[0])[1]

    def test_lists_of_a_model_do_not_mix_models(self, data, models, tmp_path):
        """A list says whose hard negatives it holds; that must not be taken for the model that is judged."""
        listed = make_matching_pairs(Gallery.from_pairs(open_pairs(data / "pairs.jsonl")))
        path = tmp_path / "list.jsonl"
        type(listed)(listed.image_ids, listed.texts, listed.labels, {"negatives": "fgr", "model": "one"}).save(path)
        both = [models / "one", models / "two"]
        one, two = evaluate_models(settings(data, "matching", pairs=path), both, tmp_path / "cache")
        assert one.metrics != two.metrics

    def test_identity_of_folder(self, models, tmp_path):
        import shutil

        copy = tmp_path / "copy"
        shutil.copytree(models / "one", copy)
        assert identity_of_folder(copy) == identity_of_folder(models / "one") != identity_of_folder(models / "two")
        (copy / "README.md").write_text("a card")
        assert identity_of_folder(copy) == identity_of_folder(models / "one")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "max_text_length": 9}))
        assert identity_of_folder(copy) != identity_of_folder(models / "one")
        assert identity_of_folder("user/model") is None


class TestReports:
    RESULTS = (
        EvaluationResult(
            "retrieval",
            "MUGE",
            "甲",
            {"pre_ranking.text_to_image_r1": 40.25, "pre_ranking.mean_recall": 60.0},
            {"pre_ranking.text_to_image_r1": (38.0, 42.5)},
            {"pictures": 100, "texts": 50},
            {"confidence": 0.95, "resamples": 1000},
        ),
        EvaluationResult("retrieval", "MUGE", "乙", {"pre_ranking.text_to_image_r1": 50.0}),
    )

    def test_table_of_several_models(self):
        report = markdown_report(self.RESULTS)
        assert "| | 甲 | 乙 |" in report
        assert "| text→image R@1, pre-ranking | 40.2 (38.0–42.5) | **50.0** |" in report
        assert "| mean recall, pre-ranking | **60.0** | – |" in report
        ours, published = report.split("**Published on MUGE, not measured here**")
        assert "Chinese-CLIP" not in ours
        assert "| R2D2 ViT-L (250M) | zero-shot | text→image | 49.5 | 75.7 | 83.2 | arXiv 2205.03860 |" in published
        assert "甲" not in published
        with pytest.raises(ValueError, match="no results"):
            markdown_report([])

    def test_files_and_back(self, tmp_path):
        plain, table = write_report(self.RESULTS, tmp_path / "out")
        assert plain.name == "retrieval-muge.json"
        rows = json.loads(plain.read_text(encoding="utf-8"))
        assert [EvaluationResult.from_dict(row) for row in rows] == list(self.RESULTS)
        assert table.read_text(encoding="utf-8") == markdown_report(self.RESULTS)

    def test_eval_results_go_through_a_model_card(self):
        results = self.RESULTS[0].eval_results()
        data = ModelCardData(language="zh", license="other", model_name="甲", eval_results=results)
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
        loaded = card.data.eval_results
        assert [r.metric_value for r in loaded] == [40.25, 60.0]
        assert loaded[0].metric_name == "text→image R@1, pre-ranking"
        assert loaded[0].dataset_name == "MUGE"

    def test_titles(self):
        assert metric_title("two_stage.image_to_text_r10") == "image→text R@10, pre-ranking + ranking"
        assert metric_title("auc") == "ROC-AUC"

    def test_published_figures(self):
        """A few read off the papers' tables again; all are recalls that grow with K."""
        rows = {(r.model, r.data, r.setting, r.direction): r.recall for r in PUBLISHED}
        assert len(rows) == len(PUBLISHED)
        assert rows["R2D2 ViT-L (250M)", "COCO-CN", "fine-tuned", "text_to_image"] == (79.1, 96.5, 98.9)
        assert rows["Wukong ViT-L", "Flickr30k-CN", "zero-shot", "image_to_text"] == (76.1, 94.8, 97.5)
        assert rows["BriVL", "AIC-ICC", "zero-shot", "text_to_image"] == (14.4, None, 39.1)
        for recall in rows.values():
            known = [value for value in recall if value is not None]
            assert known == sorted(known)
            assert 0 < known[0] <= known[-1] <= 100
        assert len(published_recalls("flickr30k-cn")) == 10
        assert published_table("my own pairs") is None
        assert "| Wukong ViT-L | zero-shot | 55.0 |" in published_table("imagenet")

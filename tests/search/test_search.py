"""Search against every pair scored one at a time: all ways, every cache, cascade, bad input, and how hits are shown."""

import csv
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.search import Calibration, to_csv, to_json, write_sheet
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.search.conftest import NAMES, save_images

pytest.importorskip("faiss")  # of the extra [retrieval]

QUERIES = ["一只猫", "两条红色的鱼在水", "小船"]
CAPTIONS = ["一只猫", "马", "狗狗狗", "一张山水人天地的图片", "黄鸟", "小船", "abc123"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Pictures, all but two with captions; the last two share one."""
    folder = save_images(tmp_path_factory.mktemp("pictures"))
    lines = [{"image": name, "text": text} for name, text in zip(NAMES, CAPTIONS, strict=False)]
    lines[1]["text"] = ["马", "黑马"]
    lines += [{"image": NAMES[7]}, {"image": NAMES[8], "text": "小船"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def one_by_one(model, processor, collection):
    """(probability, cosine) of a text with a picture's file, one pair at a time, and the picture's embedding."""

    def score(text, name):
        inputs = processor(images=[Image.open(collection / name)], text=[text], return_tensors="pt")
        ids, mask, pixels = (inputs[key] for key in ("input_ids", "attention_mask", "pixel_values"))
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
            match = model.match(ids, pixels, mask)
        probabilities = [logits.softmax(-1)[0, 1] for logits in (match.text_match_logits, match.image_match_logits)]
        return (
            float(sum(probabilities)) / 2,
            float(output.text_embeds[0] @ output.image_embeds[0]),
            *map(float, probabilities),
        )

    texts = {*QUERIES, *CAPTIONS, "黑马"}
    return {(text, name): score(text, name) for text in texts for name in NAMES}


@pytest.fixture(scope="module")
def score_of(model):
    """The score of (probability, cosine) by a rule, written out."""

    def score(probability, cosine, rule="fused"):
        if rule == "published":
            return cosine + probability
        return cosine / model.temperature.item() + np.log(probability / (1 - probability))

    return score


@pytest.fixture(scope="module")
def indexes(model, processor, collection, tmp_path_factory):
    root = tmp_path_factory.mktemp("indexes")
    made = {}
    for keep, precision in (("none", "float16"), ("states", "float32"), ("keys_values", "float32"), ("states", "int8")):
        made[keep, precision] = root / f"{keep}-{precision}"
        options = {"keep": keep, "precision": precision, "batch_size": 2, "part_size": 4}
        R2D2Retriever.build(collection / "list.jsonl", model, made[keep, precision], processor, **options)
    return made


@pytest.fixture(scope="module", params=[("none", "float16"), ("states", "float32"), ("keys_values", "float32")])
def retriever(request, indexes, model, processor):
    return R2D2Retriever.open(indexes[request.param], model, processor, chunk=3)


@pytest.mark.parametrize(
    ("candidates", "rule"), [(1, None), (4, "fused"), (4, "published"), (9, "published"), (128, None)]
)
def test_text_to_image(retriever, one_by_one, score_of, candidates, rule):
    results = retriever.search(QUERIES, top_k=9, candidates=candidates, score=rule)
    for text, result in zip(QUERIES, results, strict=True):
        assert result.query == text
        scores = {name: one_by_one[text, name] for name in NAMES}
        by_cosine = sorted(NAMES, key=lambda name: -scores[name][1])
        chosen, rest = by_cosine[:candidates], by_cosine[candidates:]
        combined = {name: score_of(*scores[name][:2], rule or "fused") for name in NAMES}
        assert [hit.id for hit in result.hits] == sorted(chosen, key=lambda name: -combined[name]) + rest
        assert [hit.rank for hit in result.hits] == list(range(1, 10))
        for hit in result.hits:
            probability, cosine = scores[hit.id][:2]
            assert hit.cosine == pytest.approx(cosine, abs=1e-5)
            if hit.id in chosen:
                assert hit.match_probability == pytest.approx(probability, abs=1e-5)
                assert hit.score == pytest.approx(combined[hit.id], abs=3e-4)
            else:
                assert hit.match_probability is None
                assert hit.score <= min(combined[name] for name in chosen) - 1 + 3e-4
        values = [hit.score for hit in result.hits]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("candidates", [2, 128])
def test_image_to_text(retriever, one_by_one, score_of, collection, candidates):
    names = [NAMES[0], NAMES[4]]
    captions = [*CAPTIONS, "黑马"]
    results = retriever.search(images=[collection / n for n in names], find="texts", top_k=20, candidates=candidates)
    for name, result in zip(names, results, strict=True):
        scores = {text: one_by_one[text, name] for text in captions}
        by_cosine = sorted(captions, key=lambda text: -scores[text][1])
        chosen, rest = by_cosine[:candidates], by_cosine[candidates:]
        expected = sorted(chosen, key=lambda text: -score_of(*scores[text][:2])) + rest
        assert [hit.text for hit in result.hits] == expected
        for hit in result.hits:
            if hit.text in chosen:
                assert hit.match_probability == pytest.approx(scores[hit.text][0], abs=1e-5)
        assert {hit.text: hit.id for hit in result.hits}["小船"] == NAMES[5]  # the first of the two that have it
        assert result.image.size == Image.open(collection / name).size


def test_image_to_image(retriever, collection):
    (result,) = retriever.search(images=collection / NAMES[3], top_k=3)
    assert result.hits[0].id == NAMES[3]
    assert result.hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert all(hit.match_probability is None and hit.score == hit.cosine for hit in result.hits)


@pytest.mark.parametrize(("best", "rule"), [(1, "fused"), (3, "fused"), (3, "published"), (100, "fused")])
def test_cascade(retriever, one_by_one, score_of, best, rule):
    (result,) = retriever.search(QUERIES[1], top_k=9, candidates=6, cascade=best, score=rule)
    scores = {name: one_by_one[QUERIES[1], name] for name in NAMES}
    by_cosine = sorted(NAMES, key=lambda name: -scores[name][1])
    first = sorted(by_cosine[:6], key=lambda name: -score_of(scores[name][2], scores[name][1], rule))
    top = sorted(first[:best], key=lambda name: -score_of(*scores[name][:2], rule))
    assert [hit.id for hit in result.hits] == top + first[best:] + by_cosine[6:]
    for hit in result.hits[:6]:
        wanted = scores[hit.id][0 if hit.id in top else 2]
        assert hit.match_probability == pytest.approx(wanted, abs=1e-5)
    values = [hit.score for hit in result.hits]
    assert values == sorted(values, reverse=True)
    if best >= 6:  # every candidate by both encoders: as without a cascade
        (whole,) = retriever.search(QUERIES[1], top_k=9, candidates=6, score=rule)
        assert [hit.id for hit in whole.hits] == [hit.id for hit in result.hits]
        assert [hit.score for hit in whole.hits] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("rule", ["fused", "published"])
def test_same_scores_as_evaluation(indexes, model, processor, collection, rule):
    """A search, `match` and `two_stage_scores` are three ways to the same numbers, candidates or not."""
    from modeling_r2d2.evaluation import encode_images, encode_texts, two_stage_scores

    retriever = R2D2Retriever.open(indexes["states", "float32"], model, processor)
    images = [Image.open(collection / name) for name in NAMES]
    encoded = encode_texts(model, processor, QUERIES), encode_images(model, processor, images)
    for count in (4, 9):
        scores = two_stage_scores(model, *encoded, count, score=rule)
        for row, result in zip(scores, retriever.search(QUERIES, top_k=9, candidates=count, score=rule), strict=True):
            assert [hit.score for hit in result.hits] == pytest.approx(row.sort(descending=True).values, abs=3e-4)
            assert [hit.id for hit in result.hits] == [NAMES[i] for i in row.argsort(descending=True)]
    matched = retriever.match([collection / name for name in NAMES], QUERIES, score=rule)
    torch.testing.assert_close(matched.score.t(), scores, atol=3e-4, rtol=0)


def test_score_of_a_converted_checkpoint_and_of_the_retriever(indexes, model, processor, monkeypatch):
    """A configuration says which rule; the retriever's own comes before, and a call's before that."""
    path = indexes["states", "float32"]
    by_rule = {
        rule: [hit.score for hit in R2D2Retriever.open(path, model, processor).search("小船", score=rule)[0].hits]
        for rule in ("fused", "published")
    }
    monkeypatch.setattr(model.config, "two_stage_score", "published")
    retriever = R2D2Retriever.open(path, model, processor)
    assert [hit.score for hit in retriever.search("小船")[0].hits] == by_rule["published"]
    retriever = R2D2Retriever.open(path, model, processor, score="fused")
    assert [hit.score for hit in retriever.search("小船")[0].hits] == by_rule["fused"]
    assert [hit.score for hit in retriever.search("小船", score="published")[0].hits] == by_rule["published"]
    with pytest.raises(ValueError, match="score is 'sum'"):
        retriever.search("小船", score="sum")
    for wanted in ({"texts": "小船", "candidates": 0}, {"images": tiny_image(0)}):
        with pytest.raises(ValueError, match="a score is of both stages"):
            retriever.search(**wanted, score="fused")
    with pytest.raises(ValueError, match="a score of both stages needs a ranker"):
        R2D2Retriever(tiny_model(ranker=False), processor, score="fused")


def test_saturated_probabilities_keep_their_order(indexes, model, processor):
    """Heads so sure that every probability is 0 or 1 in float32: the order is still that of the log-odds."""
    retriever = R2D2Retriever.open(indexes["states", "float32"], model, processor)
    heads = model.text_image_match_head, model.image_text_match_head
    before = [head.weight.detach().clone() for head in heads]
    try:
        for head in heads:
            head.weight.data *= 400
        hits = retriever.search("小船", top_k=9)[0].hits
        matched = retriever.match([hit.image.open() for hit in hits], "小船")
    finally:
        for head, weight in zip(heads, before, strict=True):
            head.weight.data.copy_(weight)
    assert matched.raw_match_probability.unique().numel() < 9
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert min(-np.diff(scores)) > 1e-3
    assert matched.score[:, 0].tolist() == pytest.approx(scores, rel=1e-4)


def test_a_image_is_read_once_for_all_queries(indexes, model, processor, monkeypatch):
    retriever = R2D2Retriever.open(indexes["none", "float16"], model, processor)
    seen = []
    encode = model.get_image_features
    monkeypatch.setattr(
        model, "get_image_features", lambda pixels, **k: seen.append(len(pixels)) or encode(pixels, **k)
    )
    retriever.search(QUERIES, candidates=9)
    assert sum(seen) == 9


def test_coarse_states_move_probabilities_little(indexes, model, processor, one_by_one):
    retriever = R2D2Retriever.open(indexes["states", "int8"], model, processor)
    (result,) = retriever.search("一只猫", top_k=9)
    difference = [abs(hit.match_probability - one_by_one["一只猫", hit.id][0]) for hit in result.hits]
    assert 0 < max(difference) < 0.1


def test_fused_calibration_orders_and_agrees(indexes, model, processor, one_by_one):
    """Fitted weights of both stages: the order of hits is that of their calibrated probabilities."""
    calibration = Calibration("fused", 2.0, -9.0, 0.25, 100, {}, similarity_slope=0.3)
    retriever = R2D2Retriever.open(indexes["states", "float32"], model, processor)
    plain = retriever.search("小船", top_k=9)[0].hits
    retriever.calibration = calibration
    hits = retriever.search("小船", top_k=9)[0].hits
    assert [hit.id for hit in hits] != [hit.id for hit in plain]
    for hit in hits:
        p, cosine = one_by_one["小船", hit.id][:2]
        z = 0.3 * cosine / model.temperature.item() + 2 * np.log(p / (1 - p))
        assert hit.score == pytest.approx(z, abs=1e-3)
        assert hit.match_probability == pytest.approx(1 / (1 + np.exp(9 - z)), abs=1e-4)
    probabilities = [hit.match_probability for hit in hits]
    assert probabilities == sorted(probabilities, reverse=True)
    published = retriever.search("小船", top_k=9, score="published")[0].hits
    assert [hit.score for hit in published] == pytest.approx(
        sorted((sum(one_by_one["小船", hit.id][:2]) for hit in hits), reverse=True), abs=1e-4
    )
    matched = retriever.match([hit.image.open() for hit in hits], "小船")
    assert matched.match_probability[:, 0].tolist() == pytest.approx(probabilities, abs=1e-4)
    assert matched.score[:, 0].tolist() == pytest.approx([hit.score for hit in hits], abs=1e-3)


def test_threshold_and_calibration(indexes, model, processor, one_by_one):
    path = indexes["states", "float32"]
    calibration = Calibration("platt", 0.5, -0.3, 0.25, 100, {})
    retriever = R2D2Retriever.open(path, model, processor)
    plain = retriever.search("小船", top_k=9)[0].hits
    retriever.calibration = calibration
    hits = retriever.search("小船", top_k=9)[0].hits
    assert [hit.id for hit in hits] == [hit.id for hit in plain]
    for hit, before in zip(hits, plain, strict=True):
        p = before.match_probability
        z = 0.5 * np.log(p / (1 - p)) - 0.3
        assert hit.match_probability == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)
        assert hit.raw_match_probability == pytest.approx(p)
        assert hit.score == pytest.approx(before.score)
    middle = sorted(hit.match_probability for hit in hits)[4]
    kept = retriever.search("小船", top_k=9, min_match_probability=middle)[0].hits
    assert [hit.id for hit in kept] == [hit.id for hit in hits if hit.match_probability >= middle]
    assert [hit.rank for hit in kept] == [1, 2, 3, 4, 5]
    few = retriever.search("小船", top_k=9, candidates=2, min_match_probability=0.0)[0].hits
    assert len(few) == 2  # of the others no probability is known


def test_files_that_vanish_or_change(model, processor, tmp_path, caplog):
    folder = save_images(tmp_path / "p")
    for keep in ("none", "states"):
        R2D2Retriever.build(folder, model, tmp_path / keep, processor, keep=keep)
    (folder / "a.png").unlink()
    tiny_image(99).save(folder / "g.png")
    for keep in ("none", "states"):
        hits = R2D2Retriever.open(tmp_path / keep, model, processor).search("一只猫", top_k=9)[0].hits
        assert {hit.id: hit.problem for hit in hits if hit.problem} == {"a.png": "missing", "g.png": "changed"}
        assert [hit.id for hit in hits if hit.match_probability is None] == (["a.png"] if keep == "none" else [])
        assert len(hits) == 9
    assert "a.png" in caplog.text


def test_bad_queries(retriever, collection):
    for text in ("", "   ", "\u3000\n", ["一只猫", " "]):
        with pytest.raises(ValueError, match="only spaces"):
            retriever.search(text)
    with pytest.raises(ValueError, match="no query"):
        retriever.search([])
    with pytest.raises(ValueError, match="not both"):
        retriever.search()
    with pytest.raises(ValueError, match="not both"):
        retriever.search("一只猫", collection / "a.png")
    with pytest.raises(ValueError, match="at least 1"):
        retriever.search("一只猫", top_k=0)
    with pytest.raises(ValueError, match="find"):
        retriever.search("一只猫", find="videos")
    with pytest.raises(ValueError, match="nowhere"):
        retriever.search(images=collection / "nowhere.png")
    with pytest.raises(ValueError, match="needs match probabilities"):
        retriever.search(images=collection / "a.png", min_match_probability=0.5)
    with pytest.raises(TypeError, match="query 2"):
        retriever.search(["一只猫", 7])
    assert len(retriever.search("一只猫" * 40, top_k=1000)[0].hits) == 9  # longer than the model reads; all there are


def test_no_captions_to_find(model, processor, images, tmp_path):
    R2D2Retriever.build(images, model, tmp_path / "index", processor)
    with pytest.raises(ValueError, match="no captions"):
        R2D2Retriever.open(tmp_path / "index", model, processor).search(images=images / "a.png", find="texts")


def test_pre_ranking_only(images, tmp_path):
    prd2, processor = tiny_model(ranker=False), tiny_processor()
    with pytest.raises(ValueError, match="pre-ranking only"):
        R2D2Retriever.build(images, prd2, tmp_path / "index", processor, keep="states")
    R2D2Retriever.build(images, prd2, tmp_path / "index", processor)
    retriever = R2D2Retriever.open(tmp_path / "index", prd2, processor)
    hits = retriever.search("一只猫")[0].hits
    assert [hit.score for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
    with pytest.raises(ValueError, match="pre-ranking only"):
        retriever.match(images / "a.png", "一只猫")


def test_match_needs_no_index(model, processor, collection, one_by_one):
    retriever = R2D2Retriever(model, processor)
    found = retriever.match([collection / name for name in NAMES[:3]], QUERIES)
    for row, name in enumerate(NAMES[:3]):
        for column, text in enumerate(QUERIES):
            probability, cosine = one_by_one[text, name][:2]
            assert float(found.match_probability[row, column]) == pytest.approx(probability, abs=1e-5)
            assert float(found.cosine[row, column]) == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(ValueError, match="no index"):
        retriever.search("一只猫")


def test_opens_its_own_model(model_folder, collection, tmp_path, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    R2D2Retriever.build(collection / "list.jsonl", model_folder.name, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    assert len(R2D2Retriever.open("index").search("一只猫", top_k=3)[0].hits) == 3


def test_json_csv_and_sheets(retriever, tmp_path):
    results = retriever.search(QUERIES[:2], top_k=3)
    parsed = json.loads(to_json(results))
    assert [entry["query"] for entry in parsed] == QUERIES[:2]
    for entry, result in zip(parsed, results, strict=True):
        assert [list(hit) for hit in entry["hits"]] == [
            ["rank", "id", "path", "score", "match_probability", "cosine"]
        ] * 3
        assert [hit["id"] for hit in entry["hits"]] == [hit.id for hit in result.hits]
        assert all(os.path.isfile(hit["path"]) for hit in entry["hits"])
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [row["id"] for row in rows] == [hit.id for result in results for hit in result.hits]
    assert float(rows[0]["score"]) == results[0].hits[0].score
    png, page = write_sheet(results, tmp_path / "found.png", title="找图 <b>")
    assert min(Image.open(png).size) > 200
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 6
    assert "找图 &lt;b&gt;" in text
    assert "http" not in text  # self-contained
    by_image = retriever.search(images=results[0].hits[0].path, find="texts", top_k=2)
    _, page = write_sheet(by_image, tmp_path / "texts.html")
    assert page.read_text(encoding="utf-8").count("data:image") == 1


def test_models_of_another_kind_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a model of type 'bert'; search needs an R2D2, PRD2, Wukong or BriVL"):
        load_model(tmp_path / "bert")

"""Search with Wukong models: the index finds what the model's own similarities say, both ways."""

import json

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.evaluation.retrieval import score_both_ways
from modeling_r2d2.inference.identity import OtherModelError
from modeling_r2d2.search.building import IndexBuilder
from tests.helpers import tiny_image
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

TEXTS = ["一只猫", "狗", "两条大红鱼在水", "马", "黄花", "很大", "小船"]
KINDS = ("clip", "filip", "wukong")


def saved_wukong(folder, kind="wukong", seed=0, **settings):
    torch.manual_seed(seed)
    tiny_wukong(kind, **settings).save_pretrained(folder)
    tiny_wukong_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    """Seven pictures, a caption each."""
    lines = []
    for number, text in enumerate(TEXTS):
        tiny_image(number, 30 + number, 40).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "pairs.jsonl"


def assert_best(similarity, found, given):
    """The found ones have the similarities given, which are the greatest there are (near ties in either order)."""
    assert len(set(found)) == len(found)
    np.testing.assert_allclose(given, similarity[found], atol=2e-5)
    np.testing.assert_allclose(given, similarity.topk(len(found)).values, atol=2e-5)


@pytest.mark.parametrize("padding", ["excluded", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_search_gives_the_models_similarities(kind, padding, pairs, tmp_path):
    pytest.importorskip("faiss")
    folder = saved_wukong(tmp_path / "model", kind, text_padding=padding)
    outcome = R2D2Retriever.build(pairs, folder, tmp_path / "index", batch_size=2, part_size=2)
    assert outcome.images == len(TEXTS)
    retriever = R2D2Retriever.open(tmp_path / "index")
    images = [tiny_image(number, 30 + number, 40) for number in range(len(TEXTS))]
    scores = score_both_ways(retriever.model, retriever.processor, images, TEXTS)
    per_text, per_image = scores.cosine, scores.image_to_text
    for number, result in enumerate(retriever.search(TEXTS, top_k=4)):
        found = [int(hit.path.rpartition("/")[2][0]) for hit in result.hits]
        assert_best(per_text[number], found, [hit.cosine for hit in result.hits])
        assert result.hits[0].match_probability is None
    for number, result in enumerate(retriever.search(images=images, find="texts", top_k=3)):
        found = [TEXTS.index(hit.text) for hit in result.hits]
        assert_best(per_image[number], found, [hit.cosine for hit in result.hits])


def test_adding_and_removing_keeps_the_rest(pairs, tmp_path):
    folder = saved_wukong(tmp_path / "model")
    R2D2Retriever.build(pairs, folder, tmp_path / "index", part_size=4, batch_size=4)
    before = R2D2Retriever.open(tmp_path / "index").search("马", top_k=7)[0].hits
    (pairs.parent / "more").mkdir()
    tiny_image(50).save(pairs.parent / "more" / "x.png")
    R2D2Retriever.build(pairs.parent / "more", folder, tmp_path / "index", batch_size=4)
    added = R2D2Retriever.open(tmp_path / "index")
    assert len(added.index) == 8
    builder = IndexBuilder(added.model, added.processor, tmp_path / "index", batch_size=4)
    new = next(hit.id for hit in added.search("马", top_k=8)[0].hits if hit.path.endswith("x.png"))
    builder.remove([new])
    after = R2D2Retriever.open(tmp_path / "index").search("马", top_k=7)[0].hits
    assert [(hit.id, hit.cosine) for hit in after] == [(hit.id, hit.cosine) for hit in before]
    builder.remove([before[0].id])
    assert len(R2D2Retriever.open(tmp_path / "index").search("马", top_k=9)[0].hits) == 6


def test_what_a_token_wise_model_cannot_do(pairs, tmp_path):
    folder = saved_wukong(tmp_path / "model")
    R2D2Retriever.build(pairs, folder, tmp_path / "index")
    retriever = R2D2Retriever.open(tmp_path / "index")
    with pytest.raises(ValueError, match="not two of a kind"):
        retriever.search(images=tiny_image(1))
    with pytest.raises(ValueError, match="not two of a kind"):
        retriever.search("猫", find="texts")
    with pytest.raises(ValueError, match="match probabilities"):
        retriever.search("猫", min_match_probability=0.5)
    with pytest.raises(ValueError, match="a match probability needs a ranker"):
        retriever.match(tiny_image(1), "猫")
    with pytest.raises(ValueError, match="compares token by token"):
        R2D2Retriever.build(pairs, folder, tmp_path / "other", vectors="hnsw")
    with pytest.raises(ValueError, match="pre-ranking only"):
        R2D2Retriever.build(pairs, folder, tmp_path / "other", keep="states")


def test_another_similarity_is_another_model(pairs, tmp_path):
    """The same weights, compared in another way, give other embeddings."""
    one = saved_wukong(tmp_path / "one", "filip")
    other = saved_wukong(tmp_path / "other", "filip", text_padding="zero")
    R2D2Retriever.build(pairs, one, tmp_path / "index")
    with pytest.raises(OtherModelError):
        R2D2Retriever.open(tmp_path / "index", other)

"""Encoding and two-stage scores against one pair at a time."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_r2d2.evaluation import (
    EncodedImages,
    EncodedTexts,
    encode_images,
    encode_texts,
    evaluate_retrieval,
    recall_at,
    two_stage_scores,
)
from modeling_r2d2.inference.ranker import FastRanker, PlainRanker, ranker_of
from modeling_r2d2.inference.recall import first_hit_ranks
from modeling_r2d2.inference.scoring import TwoStageScore
from modeling_r2d2.processing.datasets.gallery import positive_pairs
from tests.helpers import tiny_image, tiny_model, tiny_processor

TEXTS = ["一只猫", "马", "两条红色的鱼在水", "小船", "一张山水人天地的图片", "狗狗狗", "abc123", "黄鸟"]
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "r2d2_b16"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture(scope="module")
def pil_images():
    return [tiny_image(seed, width=30 + 3 * seed, height=50 - 2 * seed) for seed in range(6)]


@pytest.fixture(scope="module")
def one_by_one(model, processor, pil_images):
    """Cosine and match probability of every (text, picture), one pair at a time: two (T, I) tensors."""
    cosine, probability = torch.zeros(2, len(TEXTS), len(pil_images))
    with torch.no_grad():
        for row, text in enumerate(TEXTS):
            for column, image in enumerate(pil_images):
                inputs = processor(images=image, text=text, return_tensors="pt")
                ids, mask, pixels = (inputs[n] for n in ("input_ids", "attention_mask", "pixel_values"))
                output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
                cosine[row, column] = output.text_embeds @ output.image_embeds[0]
                probability[row, column] = model.match(ids, pixels, mask).match_probability
    assert probability.std() > 1e-3, "the test needs probabilities that differ"
    return cosine, probability


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_encoding_keeps_the_order(model, processor, pil_images, one_by_one, batch_size):
    images = encode_images(model, processor, pil_images, batch_size)
    texts = encode_texts(model, processor, TEXTS, batch_size)
    torch.testing.assert_close(texts.embeds @ images.embeds.t(), one_by_one[0], atol=1e-5, rtol=0)
    lengths = [len(processor.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert texts.attention_mask.sum(dim=1).tolist() == lengths
    for states, length in zip(texts.hidden_states, lengths, strict=True):
        assert states[:length].abs().sum(dim=1).min() > 0
    assert images.hidden_states.shape == (len(pil_images), 5, 24)


def test_encoding_from_files_and_without_states(model, processor, pil_images, tmp_path):
    paths = []
    for number, image in enumerate(pil_images[:3]):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    images = encode_images(model, processor, [paths[0], str(paths[1]), pil_images[2]], keep_states=False)
    assert images.hidden_states is None
    torch.testing.assert_close(images.embeds, encode_images(model, processor, pil_images[:3]).embeds)
    assert encode_texts(model, processor, TEXTS, keep_states=False).hidden_states is None


def test_encoding_leaves_modes_and_gradients_alone(model, processor, pil_images):
    model.train()
    model.vision_model.eval()  # a locked image tower
    try:
        texts = encode_texts(model, processor, TEXTS)
        assert not texts.embeds.requires_grad
        assert model.training
        assert model.text_model.training
        assert not model.vision_model.training
    finally:
        model.eval()


def test_nothing_to_encode(model, processor):
    with pytest.raises(ValueError, match="images is empty"):
        encode_images(model, processor, [])
    with pytest.raises(ValueError, match="texts is empty"):
        encode_texts(model, processor, [])
    with pytest.raises(TypeError, match="one string"):
        encode_texts(model, processor, "一只猫")


def by_hand(model, cosine, probability, rule):
    """The score of a pair, written out."""
    if rule == "published":
        return cosine + probability
    return cosine / model.temperature.item() + torch.log(probability / (1 - probability))


@pytest.mark.parametrize("rule", ["fused", "published"])
@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("candidates", [1, 3, 6, 100])
def test_two_stage_scores(model, processor, pil_images, one_by_one, candidates, direction, rule):
    images, texts = encode_images(model, processor, pil_images), encode_texts(model, processor, TEXTS)
    scores = two_stage_scores(model, texts, images, candidates, direction, rule)
    if rule == "fused":  # the model's own
        assert torch.equal(scores, two_stage_scores(model, texts, images, candidates, direction))
    cosine, probability = one_by_one if direction == "text_to_image" else [m.t() for m in one_by_one]
    wanted = by_hand(model, cosine, probability, rule)
    assert scores.shape == cosine.shape
    for row in range(len(cosine)):
        order = sorted(range(cosine.shape[1]), key=lambda item: -cosine[row, item])
        chosen, rest = order[:candidates], order[candidates:]
        for item in chosen:
            assert scores[row, item].item() == pytest.approx(wanted[row, item].item(), abs=1e-4)
        if rest:
            assert scores[row, rest].max() <= scores[row, chosen].min() - 1 + 1e-5
            assert scores[row, rest].tolist() == sorted(scores[row, rest].tolist(), reverse=True)


def test_only_the_asked_pairs_are_ranked(model, processor, pil_images, one_by_one, monkeypatch):
    images, texts = encode_images(model, processor, pil_images), encode_texts(model, processor, TEXTS)
    wanted, asked = torch.rand(len(TEXTS), len(pil_images)) < 0.4, []
    by_ranker = FastRanker.match_log_odds

    def watched(ranker, *arguments):
        asked.extend(zip(*(index.tolist() for index in arguments[2:]), strict=True))
        return by_ranker(ranker, *arguments)

    monkeypatch.setattr(FastRanker, "match_log_odds", watched)
    monkeypatch.setattr("modeling_r2d2.evaluation.retrieval.candidate_pairs", lambda *_: wanted)
    scores = two_stage_scores(model, texts, images, 1)
    assert asked == [tuple(pair) for pair in wanted.nonzero().tolist()]
    cosine, probability = one_by_one
    expected = by_hand(model, cosine, probability, "fused")
    torch.testing.assert_close(scores[wanted], expected[wanted], atol=1e-4, rtol=0)


@pytest.mark.parametrize("block", [1, 2**28])
def test_match_probabilities(model, processor, pil_images, one_by_one, monkeypatch, block):
    """In the order of the pairs, each as often as it is asked for, whatever block its picture is in."""
    monkeypatch.setattr("modeling_r2d2.inference.ranker._BLOCK_BYTES", block)
    images = encode_images(model, processor, [*pil_images, *pil_images])
    texts = encode_texts(model, processor, TEXTS)
    text_index, image_index = torch.randint(len(TEXTS), (40,)), torch.randint(len(images.embeds), (40,))
    found = FastRanker(model).match_probabilities(texts, images, text_index, image_index)
    wanted = one_by_one[1][text_index, image_index % len(pil_images)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["fused", "published"])
def test_evaluate_retrieval(model, processor, pil_images, one_by_one, rule):
    image_ids, text_ids = list("aabcde"), ["a", "b", "c", "a", ["d", "e"], "e", "b", "c"]
    result = evaluate_retrieval(
        model, processor, pil_images, TEXTS, image_ids, text_ids, ks=(1, 2), candidates=100, batch_size=2, score=rule
    )
    positives = positive_pairs(image_ids, text_ids)
    cosine, probability = one_by_one
    both = {name: by_hand(model, cosine, probability, name) for name in ("fused", "published")}
    stages = [(result.pre_ranking, cosine), *((result.two_stage_by_score[name], both[name]) for name in both)]
    for figures, scores in stages:
        for way, matrix, right in (
            ("text_to_image", scores, positives),
            ("image_to_text", scores.t(), positives.t()),
        ):
            expected = recall_at(first_hit_ranks(matrix, right), (1, 2))
            assert {k: figures[f"{way}_r{k}"] for k in (1, 2)} == expected
    assert result.score == rule
    assert result.two_stage == result.two_stage_by_score[rule]
    torch.testing.assert_close(result.text_to_image_scores, both[rule], atol=1e-4, rtol=0)
    torch.testing.assert_close(result.image_to_text_scores, both[rule].t(), atol=1e-4, rtol=0)
    written = json.loads(json.dumps(result.to_dict()))
    assert written["texts"] == len(TEXTS)
    assert written["two_stage"] == written["two_stage_by_score"][rule]


def test_both_rules_rank_once(model, processor, pil_images, monkeypatch):
    asked, by_ranker = [], FastRanker.match_log_odds
    monkeypatch.setattr(FastRanker, "match_log_odds", lambda self, *a: asked.append(len(a[2])) or by_ranker(self, *a))
    result = evaluate_retrieval(model, processor, pil_images, TEXTS[:6], candidates=6)
    assert set(result.two_stage_by_score) == {"fused", "published"}
    assert asked == [36]


def test_weights_of_ones_own(model, processor, pil_images, one_by_one):
    score = TwoStageScore("fused", model.temperature.item(), 0.5, 2.0)
    result = evaluate_retrieval(model, processor, pil_images, TEXTS[:6], candidates=6, score=score)
    cosine, probability = (each[:6] for each in one_by_one)
    wanted = 0.5 * cosine / model.temperature.item() + 2 * torch.log(probability / (1 - probability))
    torch.testing.assert_close(result.text_to_image_scores, wanted, atol=1e-4, rtol=0)


def test_layers_that_cannot_be_rearranged_are_ranked_by_the_model(
    model, processor, pil_images, one_by_one, monkeypatch
):
    """Adapters and quantised layers: the same probabilities, by the model's own `rank`."""

    class Adapted(torch.nn.Linear):
        pass

    model = copy.deepcopy(model)
    attention = model.text_image_encoder.layers[0].self_attn
    adapted = Adapted(attention.q_proj.in_features, attention.q_proj.out_features)
    adapted.load_state_dict(attention.q_proj.state_dict())
    attention.q_proj = adapted
    ranker = ranker_of(model)
    assert isinstance(ranker, PlainRanker)
    ranker.chunk = 5
    images, texts = encode_images(model, processor, pil_images), encode_texts(model, processor, TEXTS)
    pairs = torch.cartesian_prod(torch.arange(len(TEXTS)), torch.arange(len(pil_images)))[
        torch.randperm(len(TEXTS) * len(pil_images))
    ]
    found = ranker.match_probabilities(texts, images, *pairs.T)
    torch.testing.assert_close(found, one_by_one[1][pairs[:, 0], pairs[:, 1]], atol=1e-5, rtol=0)


def test_shared_pass_equals_each_direction_alone(model, processor, pil_images):
    result = evaluate_retrieval(model, processor, pil_images, TEXTS[:6], candidates=2)
    images, texts = encode_images(model, processor, pil_images), encode_texts(model, processor, TEXTS[:6])
    for way in ("text_to_image", "image_to_text"):
        alone = two_stage_scores(model, texts, images, 2, way)
        torch.testing.assert_close(getattr(result, f"{way}_scores"), alone, atol=1e-4, rtol=0)


def test_pre_ranking_only(processor, pil_images):
    prd2 = tiny_model(ranker=False)
    result = evaluate_retrieval(prd2, processor, pil_images, TEXTS[:6])
    assert result.two_stage is None
    assert [result.to_dict()[name] for name in ("candidates", "score", "two_stage_by_score")] == [None] * 3
    with pytest.raises(ValueError, match="pre-ranking only"):
        evaluate_retrieval(prd2, processor, pil_images, TEXTS[:6], candidates=4)


def test_galleries_that_do_not_fit(model, processor, pil_images):
    with pytest.raises(ValueError, match="6 images and 8 texts"):
        evaluate_retrieval(model, processor, pil_images, TEXTS)
    with pytest.raises(ValueError, match="5 image_ids for 6"):
        evaluate_retrieval(model, processor, pil_images, TEXTS, range(5), range(8))
    with pytest.raises(ValueError, match="come together"):
        evaluate_retrieval(model, processor, pil_images, TEXTS, range(6))
    with pytest.raises(ValueError, match="no right item"):
        evaluate_retrieval(model, processor, pil_images, TEXTS, range(6), range(8))
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_retrieval(model, processor, pil_images, TEXTS[:6], candidates=0)
    with pytest.raises(ValueError, match="score is 'sum'"):
        evaluate_retrieval(model, processor, pil_images, TEXTS[:6], candidates=3, score="sum")
    images = encode_images(model, processor, pil_images, keep_states=False)
    with pytest.raises(ValueError, match="keep_states=True"):
        two_stage_scores(model, encode_texts(model, processor, TEXTS), images, 3)


@pytest.fixture(scope="module")
def golden_arrays():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "golden.npz").items() if k.startswith("gal_")}


@pytest.fixture(scope="module")
def golden_encoded(golden_arrays):
    model = golden_model()
    with torch.no_grad():
        images = model.get_image_features(golden_arrays["gal_pixel_values"])
        texts = model.get_text_features(golden_arrays["gal_input_ids"], golden_arrays["gal_attention_mask"])
    image_embeds, text_embeds = (torch.nn.functional.normalize(o.pooler_output, dim=-1) for o in (images, texts))
    return (
        model,
        EncodedTexts(text_embeds, golden_arrays["gal_attention_mask"], texts.last_hidden_state),
        EncodedImages(image_embeds, images.last_hidden_state),
    )


class TestGolden:
    """The authors' own scores of a gallery of 12 images and 20 texts: the rule of a converted checkpoint."""

    @pytest.mark.parametrize("candidates", [4, 12])
    @pytest.mark.parametrize(("direction", "key"), [("text_to_image", "t2i"), ("image_to_text", "i2t")])
    def test_scores(self, golden_arrays, golden_encoded, candidates, direction, key):
        model, texts, images = golden_encoded
        scores = two_stage_scores(model, texts, images, candidates, direction)
        golden = golden_arrays[f"gal_k{candidates}_score_{key}"]
        chosen = golden > -100
        torch.testing.assert_close(scores[chosen], golden[chosen], atol=1e-5, rtol=0)
        assert model.config.two_stage_score == "published"
        for row, own in zip(scores, chosen, strict=True):
            assert bool(own.all()) or row[~own].max() <= row[own].min() - 1 + 1e-5

    def test_recalls(self, golden_arrays, golden_encoded):
        meta = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))
        model, texts, images = golden_encoded
        positives = positive_pairs(range(12), [meta["gal_txt2img"][str(text)] for text in range(20)])
        cosine = texts.embeds @ images.embeds.t()
        torch.testing.assert_close(cosine.t(), golden_arrays["gal_sims_matrix"], atol=1e-5, rtol=0)
        scores = {
            "gal_dualenc_itm_eval": {"img": (cosine, positives), "txt": (cosine.t(), positives.t())},
            # the other recalls of two stages depend on the authors' arbitrary order of what is not a candidate
            "gal_k12_itm_eval": {"img": (two_stage_scores(model, texts, images, 12), positives)},
        }
        for key, ways in scores.items():
            for way, (matrix, right) in ways.items():
                recalls = recall_at(first_hit_ranks(matrix, right))
                for k, recall in recalls.items():
                    assert recall == pytest.approx(meta[key][f"{way}_r{k}"]), f"{key} {way}_r{k}"


def golden_model():
    """The golden checkpoint, converted; its heads are narrower than the official ones, so the config is given."""
    from modeling_r2d2 import R2D2Config, convert_official_checkpoint

    sizes = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))["sizes"]
    part = {
        kind: {
            "hidden_size": sizes.get(f"{kind}_hidden_size", sizes["text_hidden_size"]),
            "num_hidden_layers": sizes[f"{kind}_layers"],
            "num_attention_heads": sizes[f"{kind}_heads"],
            "intermediate_size": sizes[f"{kind}_mlp"],
        }
        for kind in ("vision", "text", "cross")
    }
    config = R2D2Config(
        vision_config={
            **part["vision"],
            "image_size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
        },
        text_config={
            **part["text"],
            "vocab_size": sizes["vocab_size"],
            "max_position_embeddings": sizes["text_max_position_embeddings"],
        },
        cross_encoder_config=part["cross"],
        projection_dim=sizes["projection_dim"],
    )
    return convert_official_checkpoint(GOLDEN / "checkpoint.pth", config).eval()

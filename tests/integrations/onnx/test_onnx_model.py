"""`R2D2OnnxModel` in the places of an `R2D2Model`: features, ranking, evaluation, search."""

import json
import shutil

import pytest
import torch

from modeling_r2d2 import R2D2OnnxModel, R2D2Retriever
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.inference.onnx_manifest import OnnxFolderError
from modeling_r2d2.search import OtherModelError

TEXTS = ["一只猫", "马", "两条红色的鱼在水", "小船", "一张山水人天地的图片", "狗狗狗", "abc123", "黄鸟"]


@pytest.fixture(scope="module")
def onnx_model(r2d2):
    return R2D2OnnxModel.from_pretrained(r2d2.path)


def _close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_and_scores(r2d2, onnx_model, pil_images):
    inputs = r2d2.processor(images=pil_images, text=TEXTS, return_tensors="pt")
    ids, mask, pixels = (inputs[name] for name in ("input_ids", "attention_mask", "pixel_values"))
    expected, found = r2d2.model(ids, pixels, mask), onnx_model(ids, pixels, mask)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        _close(found[name], expected[name])
    _close(found.vision_model_output.last_hidden_state, expected.vision_model_output.last_hidden_state)
    expected, found = r2d2.model.match(ids, pixels, mask), onnx_model.match(ids, pixels, mask)
    for name in ("match_probability", "text_match_logits", "image_match_logits"):
        _close(found[name], expected[name])
    assert found.text_cross_output is None
    texts, images = r2d2.model.get_text_features(ids), r2d2.model.get_image_features(pixels)
    _close(onnx_model.get_text_features(ids).last_hidden_state, texts.last_hidden_state)  # without a mask
    states = texts.last_hidden_state[:2], images.last_hidden_state[:3]
    index = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 2])
    _close(
        onnx_model.rank(*states, text_index=index[0], image_index=index[1]).match_probability,
        r2d2.model.rank(*states, text_index=index[0], image_index=index[1]).match_probability,
    )


def test_evaluation(r2d2, onnx_model, pil_images):
    expected = evaluate_retrieval(r2d2.model, r2d2.processor, pil_images, TEXTS, candidates=3, batch_size=3)
    found = evaluate_retrieval(onnx_model, r2d2.processor, pil_images, TEXTS, candidates=3, batch_size=3)
    _close(found.cosine, expected.cosine)
    assert found.score == "fused"
    torch.testing.assert_close(found.text_to_image_scores, expected.text_to_image_scores, atol=2e-3, rtol=0)
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("keep", ["none", "keys_values"])
def test_search(r2d2, onnx_model, pil_images, tmp_path, keep):
    pytest.importorskip("faiss")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pil_images):
        image.save(tmp_path / "photos" / f"{number}.png")
    results = {}
    for name, model in (("torch", r2d2.model), ("onnx", onnx_model)):
        index = tmp_path / f"{name}.index"
        options = {"processor": r2d2.processor, "keep": keep, "precision": "float32"}
        R2D2Retriever.build(tmp_path / "photos", model, index, **options)
        retriever = R2D2Retriever.open(index, model, r2d2.processor)
        results[name] = retriever.search(TEXTS[:3], top_k=8, candidates=4)
        matched = retriever.match(pil_images[:2], TEXTS).match_probability
        results[f"{name} match"] = matched
    for found, expected in zip(results["onnx"], results["torch"], strict=True):
        assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
        for ours, theirs in zip(found.hits, expected.hits, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=2e-3)  # a cosine by the temperature
            assert (ours.match_probability is None) == (theirs.match_probability is None)
    _close(results["onnx match"], results["torch match"])
    with pytest.raises(OtherModelError):  # vectors of two models are never mixed unnoticed
        R2D2Retriever.open(tmp_path / "torch.index", onnx_model, r2d2.processor)
    R2D2Retriever.open(tmp_path / "onnx.index", R2D2OnnxModel(r2d2.path), r2d2.processor)  # the same graphs again
    by_folder = R2D2Retriever.open(tmp_path / "onnx.index", r2d2.path)
    assert isinstance(by_folder.model, R2D2OnnxModel)


def test_pre_ranking_only(prd2, pil_images):
    model = R2D2OnnxModel.from_pretrained(prd2.path)
    assert not model.can_rank
    result = evaluate_retrieval(model, prd2.processor, pil_images, TEXTS)
    expected = evaluate_retrieval(prd2.model, prd2.processor, pil_images, TEXTS)
    _close(result.cosine, expected.cosine)
    with pytest.raises(ValueError, match="pre-ranking only"):
        model.rank(torch.randn(1, 3, 32), torch.randn(1, 5, 24))
    with pytest.raises(ValueError, match="pre-ranking only"):
        evaluate_retrieval(model, prd2.processor, pil_images, TEXTS, candidates=3)
    with pytest.raises(ValueError, match="pre-ranking only"):
        _ = model.text_image_encoder


def test_bad_inputs(onnx_model):
    with pytest.raises(ValueError, match="40×32 pixels for a tower exported at 32×32"):
        onnx_model.get_image_features(torch.randn(1, 3, 40, 32))
    with pytest.raises(ValueError, match="41 tokens exceeds the 40"):
        onnx_model.get_text_features(torch.ones(1, 41, dtype=torch.int64))
    with pytest.raises(ValueError, match="outside the vocabulary of 99"):
        onnx_model.get_text_features(torch.full((1, 3), 99))
    with pytest.raises(ValueError, match="pixel_values is an empty batch"):
        onnx_model.get_image_features(torch.randn(0, 3, 32, 32))
    with pytest.raises(ValueError, match="input_ids is an empty batch"):
        onnx_model.get_text_features(torch.ones(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="no output_attentions"):
        onnx_model.get_text_features(torch.ones(1, 3, dtype=torch.int64), output_attentions=True)
    with pytest.raises(ValueError, match="2 texts for 3 pictures"):
        onnx_model.rank(torch.randn(2, 3, 32), torch.randn(3, 4, 16))
    with pytest.raises(ValueError, match="precision when exporting"):
        onnx_model.half()
    assert onnx_model.to("cpu").dtype == torch.float32


def test_other_provider(r2d2):
    with pytest.raises(ValueError, match="no NoSuchProvider; it has"):
        R2D2OnnxModel(r2d2.path, providers=["NoSuchProvider"])


def test_damaged_folders(prd2, tmp_path):
    with pytest.raises(OnnxFolderError, match="r2d2 export"):
        R2D2OnnxModel.from_pretrained(tmp_path)
    path = tmp_path / "copy"

    def damaged(change, message, **options):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(prd2.path, path)
        change()
        with pytest.raises(OnnxFolderError, match=message):
            R2D2OnnxModel.from_pretrained(path, **options)

    def flip():
        data = bytearray((path / "text_tower.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "text_tower.onnx").write_bytes(data)

    def edit(**changes):
        values = {**json.loads((path / "manifest.json").read_text("utf-8")), **changes}
        (path / "manifest.json").write_text(json.dumps(values), encoding="utf-8")

    damaged(lambda: (path / "image_tower.onnx").unlink(), "image_tower.onnx is missing")
    damaged(lambda: (path / "text_tower.onnx").write_bytes(b"half"), "text_tower.onnx is torn: 4 bytes")
    damaged(flip, "checksum differs")
    damaged(lambda: (path / "manifest.json").write_text("{"), "manifest.json is torn")
    damaged(lambda: edit(format=9), "format 9")
    damaged(lambda: edit(color="red"), "too many entries")


@torch.no_grad()
def test_called_as_the_model_is(prd2, pil_images):
    """With whatever the processor makes of images, of texts and of both."""
    exported, both = R2D2OnnxModel(prd2.path), {"images": pil_images[:2], "text": TEXTS[:2]}
    for given in (both, {"images": pil_images}, {"text": TEXTS}):
        inputs = prd2.processor(**given, return_tensors="pt")
        expected, found = prd2.model(**inputs), exported(**inputs)
        assert expected.keys() == found.keys()
        for name in {"logits_per_image", "image_embeds", "text_embeds"} & expected.keys():
            _close(found[name], expected[name])
    inputs = prd2.processor(**both, return_tensors="pt")
    _close(exported(**inputs, return_loss=True, return_dict=True).loss, prd2.model(**inputs, return_loss=True).loss)
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    assert isinstance(exported(**inputs, position_ids=positions, return_dict=False), tuple)
    for name, value in (("token_type_ids", torch.ones_like(positions)), ("position_ids", positions + 1)):
        with pytest.raises(ValueError, match=f"no {name}: use R2D2Model"):
            exported(**{**inputs, name: value})
    with pytest.raises(ValueError, match="no output_attentions"):
        exported(**inputs, output_attentions=True)


@torch.no_grad()
def test_ranker_called_with_what_the_processor_makes(r2d2, onnx_model, pil_images):
    inputs = r2d2.processor(images=pil_images, text=TEXTS, return_tensors="pt")
    _close(onnx_model.match(**inputs).match_probability, r2d2.model.match(**inputs).match_probability)

"""Token-wise models in evaluation, collation and the pipeline: the model's own similarities, both ways."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, EvalPrediction, pipeline

import modeling_r2d2  # noqa: F401 (registers the Auto classes)
from modeling_r2d2.evaluation import evaluate_retrieval, recall_both_ways
from modeling_r2d2.evaluation.retrieval import score_both_ways
from modeling_r2d2.inference.encoding import encode_images, encode_texts
from modeling_r2d2.inference.recall import retrieval_metrics_of
from modeling_r2d2.processing.collation import PretrainingDataset, R2D2PretrainingCollator, SampleEncoder
from tests.helpers import tiny_image
from tests.wukong import reference
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

TEXTS = ["一只猫", "狗", "两条大红鱼在水", "马", "黄花", "很大"]
SIZES = [(40, 30), (30, 41), (32, 32), (64, 64), (33, 77), (100, 32)]
KINDS = ("clip", "filip", "wukong")


@pytest.fixture(scope="module")
def pil_images() -> list:
    return [tiny_image(seed, *size) for seed, size in enumerate(SIZES)]


@pytest.mark.parametrize("padding", ["excluded", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_similarities_of_the_reference(kind, padding, pil_images):
    model, processor = tiny_wukong(kind, text_padding=padding), tiny_wukong_processor()
    scores = score_both_ways(model, processor, pil_images, TEXTS, batch_size=2)
    tokens = processor(text=TEXTS, return_tensors="pt")
    pixels = processor(images=pil_images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(tokens["input_ids"], pixels, tokens["attention_mask"])
    images, texts = output.image_embeds.double().numpy(), output.text_embeds.double().numpy()
    if kind == "clip":
        expected = images @ texts.T, texts @ images.T
    else:
        mask = tokens["attention_mask"].bool().numpy()
        padded = mask.sum(axis=1) < 16 if padding == "zero" else None
        expected = reference.similarity(images, texts, mask, padded)
        assert not np.allclose(expected[0], expected[1].T)
    np.testing.assert_allclose(scores.image_to_text.numpy(), expected[0], atol=2e-5)
    np.testing.assert_allclose(scores.cosine.numpy(), expected[1], atol=2e-5)
    with pytest.raises(ValueError, match="nothing was ranked"):
        scores.two_stage()


@pytest.mark.parametrize("kind", KINDS)
def test_recalls_are_of_either_way(kind, pil_images):
    model, processor = tiny_wukong(kind), tiny_wukong_processor()
    result = evaluate_retrieval(model, processor, pil_images, TEXTS, ks=(1, 2), batch_size=4)
    scores = score_both_ways(model, processor, pil_images, TEXTS)
    per_text, per_image = scores.cosine, scores.image_to_text
    right = torch.eye(len(TEXTS), dtype=torch.bool)
    assert result.pre_ranking == recall_both_ways(per_text, per_image, right, (1, 2))
    torch.testing.assert_close(result.cosine, per_text)
    if kind != "clip":
        torch.testing.assert_close(result.image_to_text_scores, per_image)
    with pytest.raises(ValueError, match="leave candidates at None"):
        evaluate_retrieval(model, processor, pil_images, TEXTS, candidates=2)


def test_encoded_tokens_do_not_depend_on_the_batch(pil_images):
    model, processor = tiny_wukong("filip"), tiny_wukong_processor()
    one = encode_texts(model, processor, TEXTS, batch_size=1, keep_states=False)
    all_at_once = encode_texts(model, processor, TEXTS, keep_states=False)
    assert one.embeds.shape == (6, int(one.attention_mask.sum(dim=1).max()), 16)
    torch.testing.assert_close(one.embeds, all_at_once.embeds)
    assert not one.embeds[~one.attention_mask.bool()].any()
    assert encode_images(model, processor, pil_images, keep_states=False).embeds.shape == (6, 4, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_metrics_of_padded_predictions(kind, pil_images):
    """As the Trainer hands them over: batches of other lengths joined by filling up with -100, ids that repeat."""
    model, processor = tiny_wukong(kind), tiny_wukong_processor()
    texts = encode_texts(model, processor, TEXTS, keep_states=False)
    images = encode_images(model, processor, pil_images, keep_states=False).embeds
    embeds = texts.embeds
    if kind != "clip":
        filled = torch.cat([embeds, torch.zeros(6, 2, 16)], dim=1)
        filled[3:, -2:] = -100
        embeds = filled
    ids = np.array([7, 7, 8, 9, 9, 10])
    found = EvalPrediction((embeds.numpy(), images.numpy(), np.ones((6, 1), dtype=bool)), ids)
    metrics = retrieval_metrics_of(model, ks=(1, 2))(found)
    first = [0, 2, 3, 5]
    scores = model.similarities(images[first], texts.embeds, texts.attention_mask.bool())
    right = torch.from_numpy(ids[:, None] == ids[None, first])
    assert metrics == recall_both_ways(scores.per_text, scores.per_image, right, (1, 2))


def test_collation_crops_as_the_processor_does(pil_images):
    processor = tiny_wukong_processor()
    pairs = [{"image": image, "text": "一只猫", "image_id": i} for i, image in enumerate(pil_images)]
    data = PretrainingDataset(pairs, processor)
    batch = R2D2PretrainingCollator(processor)([data[i] for i in range(len(pairs))])
    expected = processor(images=pil_images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-5)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "image_ids", "return_loss"}
    processor.image_processor.crop_size = {"height": 64, "width": 64}
    with pytest.raises(ValueError, match="neither squashes to one size nor crops"):
        SampleEncoder(processor)


@pytest.mark.parametrize("kind", KINDS)
def test_pipeline(kind, tmp_path, pil_images):
    model, processor = tiny_wukong(kind), tiny_wukong_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels = ["猫", "红鱼", "很大天"]
    tokens = processor(text=[f"一张{label}的图片" for label in labels], return_tensors="pt")
    pixels = processor(images=pil_images[:2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(tokens["input_ids"], pixels, tokens["attention_mask"]).logits_per_image.softmax(dim=1)
    assert AutoModel.from_pretrained(tmp_path).config.similarity == model.config.similarity
    classify = pipeline("r2d2-zero-shot-image-classification", model=str(tmp_path))
    for image, row in zip(classify(pil_images[:2], candidate_labels=labels, batch_size=2), expected, strict=True):
        found = {entry["label"]: entry["score"] for entry in image}
        assert [found[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="use_ranker needs a ranker"):
        classify(pil_images[0], candidate_labels=labels, use_ranker=True)

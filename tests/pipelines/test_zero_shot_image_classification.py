"""Our zero-shot pipeline beside the stock one and the model itself."""

import pytest
import torch
from transformers import pipeline

from modeling_r2d2 import R2D2ZeroShotImageClassificationPipeline
from tests.helpers import tiny_image

LABELS = ["猫", "一条红色的鱼", "小船"]
TASK = "r2d2-zero-shot-image-classification"


@pytest.fixture(scope="module")
def classify(folder):
    classify = pipeline(TASK, model=str(folder))
    assert type(classify) is R2D2ZeroShotImageClassificationPipeline
    return classify


def scores(results: list[dict]) -> dict[str, float]:
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    return {result["label"]: result["score"] for result in results}


def close(results: list[dict], expected: list[dict]) -> bool:
    return scores(results) == pytest.approx(scores(expected), abs=1e-5)


def test_equals_the_stock_pipeline_with_the_chinese_template(classify, folder):
    stock = pipeline("zero-shot-image-classification", model=str(folder))
    images = [tiny_image(n, 20 + n) for n in range(5)]
    expected = stock(images, candidate_labels=LABELS, hypothesis_template="一张{}的图片")
    assert all(map(close, classify(images, candidate_labels=LABELS), expected))
    assert all(map(close, classify(images, LABELS, batch_size=2), expected))
    assert close(classify(images[0], candidate_labels=LABELS), expected[0])
    assert close(classify(images=images[0], candidate_labels=LABELS), expected[0])
    plain = stock(images[0], candidate_labels=LABELS, hypothesis_template="{}")
    assert close(classify(images[0], LABELS, hypothesis_template="{}"), plain)
    assert not close(expected[0], plain)


def test_labels_in_one_string(classify):
    expected = classify(tiny_image(), ["猫", "狗", "马", "abc xyz"])
    assert classify(tiny_image(), "猫，狗、马, abc xyz，") == expected


def test_labels_are_encoded_once_a_call(classify, monkeypatch):
    calls = []
    features = classify.model.get_text_features
    monkeypatch.setattr(classify.model, "get_text_features", lambda *a, **k: calls.append(1) or features(*a, **k))
    classify([tiny_image(n) for n in range(4)], LABELS)
    assert len(calls) == 1


def test_long_labels_are_cut_where_the_stock_pipeline_fails(classify, folder):
    stock = pipeline("zero-shot-image-classification", model=str(folder))
    labels = ["猫", "狗" * 100]
    with pytest.raises(ValueError, match="102 tokens exceeds the 40 positions.*truncate"):
        stock(tiny_image(), candidate_labels=labels, hypothesis_template="{}")
    results = scores(classify(tiny_image(), labels, hypothesis_template="{}"))
    assert set(results) == set(labels)
    # 16 tokens are what [CLS], 14 characters and [SEP] come to
    cut = scores(classify(tiny_image(), ["猫", "狗" * 14], hypothesis_template="{}"))
    assert list(results.values()) == pytest.approx(list(cut.values()))


def test_the_ranker_scores_every_label_by_itself(classify, model, processor):
    images = [tiny_image(n) for n in range(3)]
    results = classify(images, LABELS, use_ranker=True, batch_size=2)
    for image, result in zip(images, results, strict=True):
        for label, score in scores(result).items():
            inputs = processor(images=image, text=f"一张{label}的图片", return_tensors="pt")
            with torch.no_grad():
                output = model.match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
            assert score == pytest.approx(output.match_probability.item(), abs=1e-5)


def test_arguments_of_the_constructor(folder, classify):
    configured = pipeline(TASK, model=str(folder), candidate_labels=LABELS, hypothesis_template="{}", use_ranker=True)
    expected = classify(tiny_image(), LABELS, hypothesis_template="{}", use_ranker=True)
    assert configured(tiny_image()) == expected
    assert configured(tiny_image(), use_ranker=False) != expected
    assert configured(tiny_image()) == expected


def test_by_class_and_as_pipeline_class(folder, model, processor, classify):
    expected = classify(tiny_image(), LABELS)
    own = R2D2ZeroShotImageClassificationPipeline(
        model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor
    )
    assert close(own(tiny_image(), LABELS), expected)
    whole = R2D2ZeroShotImageClassificationPipeline(model=model, processor=processor)
    assert close(whole(tiny_image(), LABELS), expected)
    stock_task = pipeline(
        "zero-shot-image-classification",
        model=str(folder),
        pipeline_class=R2D2ZeroShotImageClassificationPipeline,
    )
    assert close(stock_task(tiny_image(), LABELS), expected)


def test_images_from_files_generators_and_of_other_modes(classify, tmp_path):
    image = tiny_image()
    image.save(tmp_path / "picture.png")
    expected = classify(image, LABELS)
    assert classify(str(tmp_path / "picture.png"), LABELS) == expected
    assert list(classify((p for p in [image, image]), LABELS)) == [expected, expected]
    gray = image.convert("L")
    assert classify([gray, image.convert("RGBA")], LABELS) == [
        classify(gray.convert("RGB"), LABELS),
        expected,
    ]


def test_pre_ranking_only_model(prd2_folder):
    classify = pipeline(TASK, model=str(prd2_folder))
    assert sum(scores(classify(tiny_image(), LABELS)).values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="pre-ranking only"):
        classify(tiny_image(), LABELS, use_ranker=True)


def test_bad_calls(classify):
    assert classify([], LABELS) == []
    for labels in ([], "", "，,", None):
        with pytest.raises(ValueError, match="candidate_labels is empty"):
            classify(tiny_image(), labels)
    with pytest.raises(ValueError, match="needs an image"):
        classify(candidate_labels=LABELS)
    with pytest.raises(ValueError, match="template must contain"):
        classify(tiny_image(), LABELS, hypothesis_template="一张图片")
    with pytest.raises(ValueError, match="missing.png: no such file"):
        classify("missing.png", LABELS)


def test_other_models_are_refused(processor):
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(ValueError, match="needs an R2D2 model, not BertModel"):
        R2D2ZeroShotImageClassificationPipeline(model=bert, processor=processor)


def test_half_precision(folder, classify):
    half = pipeline(TASK, model=str(folder), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert scores(half(tiny_image(), LABELS)) == pytest.approx(scores(classify(tiny_image(), LABELS)), abs=0.1)

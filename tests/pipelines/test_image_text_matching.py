"""Match probabilities of batches of (picture, text) against `R2D2Model.match` on one pair at a time."""

import pytest
import torch
from transformers import pipeline

from modeling_r2d2 import R2D2ImageTextMatchingPipeline
from tests.helpers import tiny_image

IMAGES = [tiny_image(n, 20 + n) for n in range(3)]
TEXTS = ["一只猫", "马", "两条红色的鱼在水"]
ALL = [(image, text) for image in IMAGES for text in TEXTS]


@pytest.fixture(scope="module")
def match(folder):
    match = pipeline("image-text-matching", model=str(folder))
    assert type(match) is R2D2ImageTextMatchingPipeline
    return match


@pytest.fixture(scope="module")
def expected(model, processor):
    results = []
    for image, text in ALL:
        inputs = processor(images=image, text=text, return_tensors="pt")
        ids, mask, pixels = (inputs[n] for n in ("input_ids", "attention_mask", "pixel_values"))
        with torch.no_grad():
            probability = model.match(ids, pixels, mask).match_probability.item()
            output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        cosine = (output.text_embeds * output.image_embeds).sum().item()
        results.append({"match_probability": probability, "cosine": cosine})
    assert len({round(r["match_probability"], 4) for r in results}) > 5, "the test needs different scores"
    return results


def close(results, expected) -> bool:
    return len(results) == len(expected) and all(
        r == pytest.approx(e, abs=1e-5) for r, e in zip(results, expected, strict=True)
    )


@pytest.mark.parametrize("batch_size", [None, 1, 2, 4, 100])
def test_batches(match, expected, batch_size):
    assert close(match(ALL, batch_size=batch_size), expected)


def test_every_form_of_a_pair(match, expected, tmp_path):
    image, text = ALL[1]
    image.save(tmp_path / "picture.png")
    file = str(tmp_path / "picture.png")
    assert match((image, text)) == pytest.approx(expected[1], abs=1e-5)
    assert match({"image": image, "text": text}) == pytest.approx(expected[1], abs=1e-5)
    assert match(image=image, text=text) == pytest.approx(expected[1], abs=1e-5)
    mixed = [ALL[0], {"image": file, "text": text}, list(ALL[2]), (tmp_path / "picture.png", text)]
    assert close(match(mixed), [expected[0], expected[1], expected[2], expected[1]])


def test_lists_of_images_and_of_texts(match, expected):
    assert close(match(image=IMAGES, text=TEXTS), [expected[0], expected[4], expected[8]])
    assert close(match({"image": IMAGES, "text": TEXTS}), [expected[0], expected[4], expected[8]])
    assert close(match(image=IMAGES[0], text=TEXTS), expected[:3])
    assert close(match(image=IMAGES, text=TEXTS[0]), expected[::3])
    assert match([]) == []
    assert match(image=[], text=[]) == []


def test_generators_and_data_sets_stream(match, expected):
    consumed = []

    def stream():
        for pair in ALL:
            consumed.append(pair)
            yield pair

    results = match(stream(), batch_size=2)
    first = next(results)
    assert len(consumed) == 2
    assert close([first, *results], expected)

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(ALL)

        def __getitem__(self, number):
            if number >= len(ALL):
                raise IndexError
            return {"image": ALL[number][0], "text": ALL[number][1]}

    assert close(list(match(Pairs(), batch_size=4)), expected)


def test_every_distinct_image_and_text_is_encoded_once(match, monkeypatch):
    seen = {}
    for name in ("get_image_features", "get_text_features", "rank"):
        method = getattr(match.model, name)

        def counting(first, *args, _name=name, _method=method, **kwargs):
            seen.setdefault(_name, []).append(len(first))
            return _method(first, *args, **kwargs)

        monkeypatch.setattr(match.model, name, counting)
    match(ALL)
    assert seen == {"get_image_features": [3], "get_text_features": [3], "rank": [3]}


def test_by_class(model, processor, expected):
    match = R2D2ImageTextMatchingPipeline(model=model, processor=processor, batch_size=3)
    assert close(match(ALL), expected)


def test_long_texts_are_cut(match):
    long, cut = match(image=IMAGES[0], text=["狗" * 300, "狗" * 14])
    assert long == pytest.approx(cut)


def test_models_without_a_ranker_are_refused(prd2_folder):
    with pytest.raises(ValueError, match="pre-ranking only"):
        pipeline("image-text-matching", model=str(prd2_folder))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"image": IMAGES, "text": TEXTS[:2]}, ValueError, "3 pictures and 2 texts"),
        ({"image": IMAGES}, ValueError, "both image= and text="),
        ({}, ValueError, "both image= and text="),
        ({"inputs": ALL, "text": TEXTS}, ValueError, "not both"),
        ({"inputs": [("猫", IMAGES[0])]}, TypeError, r"\(picture, text\)"),
        ({"inputs": [("a", "b", "c")]}, TypeError, "a pair is"),
        ({"inputs": [{"picture": "a"}]}, TypeError, "a pair is"),
        ({"inputs": [("missing.png", "猫")]}, ValueError, "missing.png: no such file"),
        ({"inputs": [(3, "猫")]}, TypeError, "not int"),
        ({"inputs": ALL, "candidate_labels": TEXTS}, TypeError, "takes no 'candidate_labels'"),
    ],
)
def test_bad_calls(match, call, error, message):
    with pytest.raises(error, match=message):
        match(**call)


def test_half_precision(folder, expected):
    half = pipeline("image-text-matching", model=str(folder), dtype=torch.bfloat16)
    for result, reference in zip(half(ALL), expected, strict=True):
        assert result == pytest.approx(reference, abs=0.1)

"""Judging generated pictures: against one picture at a time, and figures made by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import polynomial_kernel

from modeling_r2d2.text_to_image.evaluation import (
    evaluate_generated,
    feature_kid,
    generate,
    image_features,
    nearest_images,
)
from modeling_r2d2.text_to_image.sheet import sample_sheet
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.text_to_image.conftest import generator, tiny_pipeline

NAMES = ["一只猫", "马", "两条红色的鱼", "小船", "山"]
OWN = [0, 0, 1, 4, 3, 2]


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(3)
    return tiny_model(), tiny_processor()


@pytest.fixture(scope="module")
def images():
    return [tiny_image(seed) for seed in range(6)]


def test_against_one_image_at_a_time(judge, images):
    model, processor = judge
    result = evaluate_generated(model, processor, images, OWN, NAMES, ks=(1, 2))
    ranks, cosines, matches, others = [], [], [], []
    for image, own in zip(images, OWN, strict=True):
        cosine, match = [], []
        for name in NAMES:
            inputs = processor(images=image, text=name, return_tensors="pt")
            ids, mask, pixels = (inputs[key] for key in ("input_ids", "attention_mask", "pixel_values"))
            with torch.no_grad():
                output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
                match.append(model.match(ids, pixels, mask).match_probability.item())
            cosine.append((output.text_embeds @ output.image_embeds.t()).item())
        ranks.append(1 + sum(value >= cosine[own] for place, value in enumerate(cosine) if place != own))
        cosines.append(cosine[own])
        matches.append(match[own])
        others.append(match[(own + 1) % 5])
    assert result.ranks.tolist() == ranks
    assert len(set(ranks)) > 1
    assert result.recall == {f"r{k}": pytest.approx(100 * np.mean(np.array(ranks) <= k)) for k in (1, 2)}
    assert result.chance == {"r1": 20.0, "r2": 40.0}
    assert result.cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    assert result.match_probability == pytest.approx(np.mean(matches), abs=1e-5)
    assert result.other_match_probability == pytest.approx(np.mean(others), abs=1e-5)
    assert json.loads(json.dumps(result.to_dict()))["names"] == 5


def test_a_judge_without_ranker(images):
    result = evaluate_generated(tiny_model(ranker=False), tiny_processor(), images, OWN, NAMES)
    assert result.match_probability is None
    assert result.probabilities is None
    assert result.recall["r5"] == 100.0


def test_what_cannot_be_judged(judge, images):
    with pytest.raises(ValueError, match="6 images, but 5"):
        evaluate_generated(*judge, images, OWN[:5], NAMES)
    with pytest.raises(ValueError, match="'马'"):
        evaluate_generated(*judge, images, OWN, [*NAMES, "马"])
    with pytest.raises(ValueError, match="outside of the 4"):
        evaluate_generated(*judge, images, OWN, NAMES[:4])


def test_kernel_distance_against_sklearn():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(9, 5)) + 0.5
    within = [polynomial_kernel(side, degree=3, gamma=1 / 5, coef0=1) for side in (x, y)]
    between = polynomial_kernel(x, y, degree=3, gamma=1 / 5, coef0=1)
    expected = sum(k[~np.eye(len(k), dtype=bool)].mean() for k in within) - 2 * between.mean()
    assert feature_kid(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two pictures"):
        feature_kid(torch.ones(1, 5), torch.tensor(y))


def test_image_features_are_unnormalized(judge, images):
    features = image_features(*judge, images)
    pixels = judge[1](images=images[2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = judge[0].get_image_features(pixels).pooler_output[0]
    torch.testing.assert_close(features[2], expected, atol=1e-5, rtol=1e-5)


def test_nearest_images():
    known = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    known[1], known[2] = 100, 200
    drawn = [Image.new("RGB", (4, 4), (190,) * 3), Image.new("RGB", (4, 4), (3,) * 3)]
    distance, place = nearest_images(drawn, known)
    assert place.tolist() == [2, 0]
    assert distance.tolist() == pytest.approx([10.0, 3.0])
    with pytest.raises(ValueError, match="generated pictures are"):
        nearest_images([Image.new("RGB", (5, 5))], known)


def test_generated_images_depend_on_prompt_and_seed_alone():
    pipeline = tiny_pipeline()
    images = generate(pipeline, ["山", "水"], seeds=(4, 5), batch_size=3, num_inference_steps=2)
    assert [len(row) for row in images] == [2, 2]
    for row, prompt in enumerate(["山", "水"]):
        for column, seed in enumerate((4, 5)):
            alone = pipeline(prompt, generator=generator(seed), num_inference_steps=2).images[0]
            difference = np.asarray(alone, dtype=int) - np.asarray(images[row][column], dtype=int)
            assert np.abs(difference).max() <= 1


def test_sheet(tmp_path, images):
    rows = [images[:3], images[3:]]
    plain = sample_sheet(["山", "水"], rows, tmp_path / "plain.png")
    assert Image.open(tmp_path / "plain.png").size == plain.size
    marked = sample_sheet(["山", "水"], rows, scores=[[0.5] * 3] * 2, found=[[True] * 3, [False] * 3], real=rows)
    assert marked.width > plain.width
    assert marked.height > plain.height

    def green(sheet):
        return (np.asarray(sheet) == (26, 152, 80)).all(axis=-1).any(axis=1).nonzero()[0]

    assert len(green(plain)) == 0
    rows_of_green = green(marked)
    assert len(rows_of_green) > 150
    assert rows_of_green.max() < marked.height // 2 + 60  # the first row alone is framed
    with pytest.raises(ValueError, match="2 prompts"):
        sample_sheet(["山", "水"], rows[:1])


def test_small_images_are_enlarged_by_whole_pixels(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    image.putpixel((0, 0), (0, 0, 255))
    sheet = np.asarray(sample_sheet(["山"], [[image]]))
    assert (sheet == (0, 0, 255)).all(axis=-1).sum() == 19 * 19

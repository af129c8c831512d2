"""The scenes of the demo set: what their captions say holds, and differs from the twin's in one thing."""

import numpy as np
import pytest

from modeling_r2d2 import R2D2Processor
from modeling_r2d2.processing.batch_augmentation import BatchAugmentation
from modeling_r2d2.processing.collation import PretrainingDataset
from modeling_r2d2.processing.datasets.scenes import CANVAS, COLORS, KINDS, SPLITS, ScenePairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer


@pytest.fixture(scope="module")
def scenes() -> ScenePairs:
    return ScenePairs(["twitter", "google"], "test", twins=40)


def test_a_pair(scenes):
    pair = scenes[5]
    assert len(scenes) == 2 * 2 * 40
    assert pair["image"].size == (CANVAS, CANVAS)
    assert pair["image"].mode == "RGB"
    assert pair["text"] == scenes.texts(5)
    assert pair["image_id"] == scenes.keys()[5]
    assert scenes.image(5).tobytes() == pair["image"].tobytes()
    # the same scene by the other vendor: another picture of the same id
    assert scenes[5 + 80]["image_id"] == pair["image_id"]
    assert scenes[5 + 80]["image"].tobytes() != pair["image"].tobytes()


def ink(pixels: np.ndarray) -> float:
    return float((pixels != 255).any(axis=2).mean())


def test_images_show_what_captions_describe(scenes):
    """Of drawings on white: where they are; on a color: which it is."""
    for place, scene in enumerate(scenes.scenes):
        pixels = np.asarray(scenes.image(place))
        half = CANVAS // 2
        if scene.kind == "beside":
            assert ink(pixels[:, :half]) > 0.01
            assert ink(pixels[:, half:]) > 0.01
            assert ink(pixels[: half // 2]) == 0
        elif scene.kind == "above":
            assert ink(pixels[:half]) > 0.01
            assert ink(pixels[half:]) > 0.01
            assert ink(pixels[:, : half // 2]) == 0
        elif scene.kind == "count":
            cells = [pixels[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
            assert sum(ink(cell) > 0.01 for cell in cells) == 3
        else:
            colors, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
            assert tuple(colors[counts.argmax()]) == COLORS[scene.color]


def test_left_and_right_are_those_of_the_drawings():
    """The twin's left half is this one's right half, but for shift and scale."""
    pairs = ScenePairs(["google"], "test", twins=4, kinds=["beside"])
    for place in range(0, 8, 2):
        one, twin = (np.asarray(pairs.image(each)).astype(float) for each in (place, place + 1))
        half = CANVAS // 2
        means = [[image[:, :half].mean((0, 1)), image[:, half:].mean((0, 1))] for image in (one, twin)]
        crossed = np.abs(means[0][0] - means[1][1]).sum() + np.abs(means[0][1] - means[1][0]).sum()
        straight = np.abs(means[0][0] - means[1][0]).sum() + np.abs(means[0][1] - means[1][1]).sum()
        assert crossed < straight
        a, b = pairs.scenes[place].a.name, pairs.scenes[place].b.name
        assert f"左边是{a}，右边是{b}" in pairs.texts(place)


@pytest.mark.parametrize("kind", KINDS)
def test_twins_differ_in_one_thing(kind):
    pairs = ScenePairs(["google"], "train", twins=20, kinds=[kind])
    for place in range(0, len(pairs), 2):
        right, wrong = pairs.texts(place)[0], pairs.wrong_text(place)
        assert wrong == pairs.texts(place + 1)[0] != right
        assert not set(pairs.texts(place)) & set(pairs.texts(place + 1))
        if kind == "color":
            assert sum(name in right for name in COLORS) == sum(name in wrong for name in COLORS) == 1
        else:
            assert sorted(right) == sorted(wrong)


def test_one_emoji_alone():
    pairs = ScenePairs(["google"], "train", twins=200, kinds=["alone"])
    names = {concept.key: concept.name for scene in pairs.scenes for concept in (scene.a, scene.b)}
    for place, key in enumerate(pairs.keys()):
        assert pairs.texts(place)[0] in {
            t.format(names[key.removeprefix("alone/")]) for t in ("{}", "一个{}", "只有{}")
        }
    assert len(set(pairs.keys())) == len(names)


def test_no_two_concepts_meet_in_two_splits():
    met = {}
    for split in SPLITS:
        scenes = ScenePairs(["google"], split, twins=300).scenes
        met[split] = {frozenset((scene.a.key, scene.b.key)) for scene in scenes}
        assert len(met[split]) == 300
    assert not met["train"] & met["test"]
    assert not met["train"] & met["validation"]
    assert not met["validation"] & met["test"]


def test_twins_share_a_batch_and_are_not_mirrored():
    pairs = ScenePairs(["google", "apple"], "train", twins=32)
    tokenizer = build_character_tokenizer(pairs.all_texts(), max_length=32)
    processor = R2D2Processor.build(tokenizer, image_size=24, max_length=32)
    data = PretrainingDataset(
        pairs, processor, BatchAugmentation(flip=0), passes=3, shuffle=True, distinct_batch=16, seed=1
    )
    order = np.concatenate([data.permutation(number) for number in range(3)])
    ids = pairs.image_ids()
    assert np.array_equal(np.sort(order[: len(pairs)]), np.arange(len(pairs)))
    assert not np.array_equal(order[: len(pairs)], order[len(pairs) : 2 * len(pairs)])
    for batch in order.reshape(-1, 16):
        assert set(batch) == set(batch ^ 1)
        assert len(set(ids[batch])) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vendors": ["nokia"]}, "unknown vendor 'nokia'"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"kinds": ["below"]}, "unknown kind 'below'"),
        ({"openly_licensed_only": True}, "proprietary"),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ScenePairs(**given)

"""The package's own sets by name, the pairs of a set that belong together, and scenes written out as files."""

import json

import numpy as np
import pytest

from modeling_r2d2.processing.datasets import PairDataset, load_pairs
from modeling_r2d2.processing.datasets.check import check_pairs
from modeling_r2d2.processing.datasets.emoji import DemoPairs, EmojiPairs
from modeling_r2d2.processing.datasets.gallery import Gallery, open_pairs
from modeling_r2d2.processing.datasets.named import named_set, shown_name
from modeling_r2d2.processing.datasets.pair_sets import kept_together
from modeling_r2d2.processing.datasets.scenes import ScenePairs
from modeling_r2d2.processing.datasets.scenes_folder import write_scenes
from tests.helpers import tiny_image


@pytest.mark.parametrize(
    ("name", "count", "vendors"),
    [
        ("emoji:twitter", 300, ("twitter",)),
        ("emoji:google,samsung/train", 570, ("google", "samsung")),
        ("emoji:samsung/calibration", 30, ("samsung",)),
        ("scenes:google,apple/validation", 600, ("google", "apple")),
        ("scenes:google/train", 4000, ("google",)),
    ],
)
def test_names(name, count, vendors):
    pairs = load_pairs(name)
    assert isinstance(pairs, DemoPairs)
    assert (len(pairs), pairs.vendors, pairs.report.seen, pairs.report.errors) == (count, vendors, count, 0)
    assert load_pairs([name]).keys() == pairs.keys()
    assert shown_name(name) == name


def test_a_split_is_named_in_either_place():
    named, split = load_pairs("scenes:google/test"), load_pairs("scenes:google", split="test")
    assert named.keys() == split.keys() == load_pairs("scenes:google/test", split="test").keys()
    # what is evaluated is the test split, what is trained on is named
    assert open_pairs("scenes:google").keys() == named.keys()
    assert open_pairs("scenes:google", split="validation").keys() != named.keys()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("emoji:nokia", {}, "unknown vendor 'nokia'; there are apple, "),
        ("emoji:", {}, "no vendor is named; there are apple, "),
        ("scenes:google", {}, "name one, as scenes:google/train"),
        ("scenes:google/dev", {}, "train, validation, test: no 'dev'"),
        ("emoji:google/test", {}, "train, calibration: no 'test'"),
        ("scenes:google/test", {"split": "train"}, "is one split, and 'train' another"),
        ("scenes:google/test", {"format": "jsonl"}, "format does not go with it"),
        ("emoji:google", {"columns": {"text": "标题"}}, "columns does not go with it"),
        ("emoji:google", {"streaming": True}, "streaming does not go with it"),
        (["pairs.jsonl", "emoji:google"], {}, "read it alone"),
    ],
)
def test_names_that_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(source, **options)


def test_files_of_similar_names_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "emoji.jsonl", "./emoji:google", "demo:google"):
        assert named_set(name) is None
    assert shown_name("a/b/") == "b"


def test_a_gallery_shows_each_thing_once():
    with pytest.raises(ValueError, match="google, apple draw the same things"):
        Gallery.from_pairs(open_pairs("scenes:google,apple"))
    assert len(Gallery.from_pairs(open_pairs("scenes:google")).images) == 300


def test_named_sets_are_checked():
    found = check_pairs(EmojiPairs(["google"]).select(range(7)), sample=3)
    assert (found.pairs, found.images, len(found.sample)) == (7, 7, 3)


def test_whole_groups_stay_together():
    assert kept_together([2, 3, 0, 1], 2) == 2
    assert kept_together([], 3) == 3
    for broken in ([0], [1, 0], [1, 2], [0, 1, 2], [0, 3]):
        assert kept_together(broken, 2) == 1
    pairs = ScenePairs(["google"], "test", twins=4)
    part = pairs.select(np.array([2, 3, 6, 7]))
    assert (len(part), part.together, part.wrong_text(1)) == (4, 2, pairs.texts(2)[0])
    assert part.image(2).tobytes() == pairs.image(6).tobytes()
    odd = pairs.select([2, 5])
    assert (odd.together, odd.mirrors) == (1, False)
    with pytest.raises(ValueError, match="twin"):
        odd.wrong_text(0)


def grouped(folder, groups, **options):
    tiny_image(0).save(folder / "a.png")
    rows = [{"image": "a.png", "text": str(place), "twins": group} for place, group in enumerate(groups)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_pairs(folder / "pairs.jsonl", **options)


def test_a_column_of_groups(tmp_path):
    named = {"columns": {"group": "twins"}}
    assert grouped(tmp_path, [7, 7, "b", "b"]).together == 1  # nobody asked
    pairs = grouped(tmp_path, [7, 7, "b", "b"], **named)
    assert (pairs.together, pairs.select([2, 3]).together, pairs.select([1, 2]).together) == (2, 2, 1)
    for groups, odd in (("aab", "b"), ("abab", "a"), ("aabbb", "b"), ("abba", "b")):
        with pytest.raises(ValueError, match=f"the group '{odd}' is not"):
            grouped(tmp_path, groups, **named)
    refused = grouped(tmp_path, ["a", None, ""], **named, max_error_rate=1.0)
    assert [problem.line for problem in refused.report.problems] == [2, 3]
    with pytest.raises(ValueError, match="without streaming"):
        load_pairs(tmp_path / "pairs.jsonl", **named, streaming=True)
    (tmp_path / "a.txt").write_text("猫")
    with pytest.raises(ValueError, match="no column of groups"):
        load_pairs(tmp_path, format="folder", **named)


def test_scenes_as_files(tmp_path):
    splits = write_scenes(tmp_path, ["google", "twitter"], "twitter", twins=3)
    assert [len(pairs) for pairs in splits.values()] == [12, 6, 6]
    drawn = ScenePairs(["google", "twitter"], "train", twins=3)
    read = load_pairs(tmp_path / "train.jsonl", columns={"group": "group"}, on_error="refuse")
    assert isinstance(read, PairDataset)
    assert (read.together, read.keys(), read.all_texts()) == (2, drawn.keys(), drawn.all_texts())
    assert all(read.image(place).tobytes() == drawn.image(place).tobytes() for place in range(12))
    labelled = load_pairs(tmp_path / "test_matching.jsonl", columns={"label": "label"}, on_error="refuse")
    test = load_pairs(tmp_path / "test.jsonl")
    for place in range(len(test)):
        true, wrong = 2 * place, 2 * place + 1
        assert labelled.labels()[[true, wrong]].tolist() == [1, 0]
        assert labelled.texts(true) == test.texts(place)
        assert labelled.texts(wrong) == test.texts(place ^ 1)
        assert labelled.keys()[true] == labelled.keys()[wrong] == test.keys()[place]
    with pytest.raises(ValueError, match="the art of apple is proprietary"):
        write_scenes(tmp_path, ["google"], "apple")

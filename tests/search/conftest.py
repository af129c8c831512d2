"""A tiny model in a folder, a folder of pictures with awkward names, and what the model says of every pair."""

import pytest

from tests.helpers import save_tiny_model, tiny_image

NAMES = ["a.png", "一只 猫.png", "b c/狗🐶.jpg", "b c/d.webp", "e.PNG", "f.bmp", "g.png", "h.gif", "马.png"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny R2D2 with its processor, as saved."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_folder):
    """The same, loaded."""
    from modeling_r2d2 import R2D2Model

    return R2D2Model.from_pretrained(model_folder).eval()


@pytest.fixture(scope="session")
def processor(model_folder):
    """Its processor."""
    from modeling_r2d2 import R2D2Processor

    return R2D2Processor.from_pretrained(model_folder)


def save_images(folder, names=NAMES, first_seed=0):
    """Pictures of different content below a folder."""
    for seed, name in enumerate(names, start=first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_image(seed, width=30 + seed, height=20 + 7 * seed % 13).save(path)
    return folder


@pytest.fixture
def images(tmp_path):
    """A folder of nine pictures: spaces, Chinese and emoji in their names, six formats."""
    return save_images(tmp_path / "我的 图片")

"""Plain pictures of eight colours, three shades each, and a tiny pre-trained model for them."""

import numpy as np
import pytest
from PIL import Image
from transformers import set_seed

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.finetuning import FinetuningSettings
from modeling_r2d2.processing.datasets.records import stable_ids
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.tiny import tiny_config

NAMES = "红绿蓝黄黑白紫橙"


class Colors:
    """24 pairs; `image_id` is the picture's own, so that the three shades of a colour share their caption alone."""

    def __init__(self, count: int = 24):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def texts(self, index: int) -> list[str]:
        return [f"{NAMES[index % 8]}色的图片"]

    def image_ids(self) -> np.ndarray:
        return stable_ids([str(index) for index in range(len(self))])

    def __getitem__(self, index: int) -> dict:
        base = np.random.default_rng(index % 8).integers(30, 220, 3) + np.random.default_rng(index).integers(-10, 10, 3)
        image = Image.new("RGB", (40, 40), tuple(int(v) for v in base))
        return {"image": image, "text": self.texts(index)[0], "image_id": str(index)}


@pytest.fixture(scope="session")
def processor() -> R2D2Processor:
    tokenizer = build_character_tokenizer([Colors().texts(i)[0] for i in range(8)], max_length=16)
    return R2D2Processor.build(tokenizer, image_size=32, max_length=16)


@pytest.fixture(scope="session", params=["clip"])
def base(request, processor, tmp_path_factory):
    """The folder of a pre-training checkpoint with dropout in its towers."""
    return save_base(tmp_path_factory.mktemp("base"), processor, request.param)


def save_base(folder, processor, tower: str = "clip", **config):
    set_seed(0)
    R2D2ForPreTraining(tiny_config(tower, max_text_length=16, **{"dropout": 0.1, **config})).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings(folder, task: str = "retrieval", preset: str | None = None, **overrides) -> FinetuningSettings:
    """Of a run of seconds."""
    return FinetuningSettings.from_preset(
        task,
        folder,
        preset,
        **{
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "arguments": {"use_cpu": True, "disable_tqdm": True},
            **overrides,
        },
    )

"""Saved folders in a fresh process without this package, by `trust_remote_code=True`."""

import json

import pytest
import torch

from modeling_r2d2 import WukongModel
from tests.helpers import tiny_image
from tests.test_remote_code import LABELS, TEXTS, fresh_process, logits
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

KINDS = {"clip": "clip", "wukong": "swin"}  # similarity: image tower


@pytest.fixture
def folder(tmp_path):
    for kind, tower in KINDS.items():
        tiny_wukong(kind, tower).save_pretrained(tmp_path / "saved" / kind)
        tiny_wukong_processor().save_pretrained(tmp_path / "saved" / kind)
    tiny_image().save(tmp_path / "saved" / "picture.png")
    return tmp_path / "saved"


def test_in_a_fresh_process(folder, tmp_path):
    result = fresh_process(
        folder,
        """
        result = {}
        for kind in ("clip", "wukong"):
            model = AutoModel.from_pretrained(folder / kind, **trust)
            zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(folder / kind, **trust)
            processor = AutoProcessor.from_pretrained(folder / kind, **trust)
            again = Path(kind)
            model.save_pretrained(again)
            processor.save_pretrained(again)
            second = AutoModel.from_pretrained(again, **trust)
            tokens = processor(images=[picture] * 2, text=TEXTS, return_tensors="pt")
            loss = model(**tokens, return_loss=True).loss.item()
            classify = pipeline("zero-shot-image-classification", model=str(again), **trust)
            result[kind] = {
                "classes": [type(each).__name__ for each in (model, zero_shot, processor, second)],
                "logits": logits(model, processor),
                "again": logits(second, AutoProcessor.from_pretrained(again, **trust)),
                "loss": loss,
                "scores": classify(picture, candidate_labels=LABELS, hypothesis_template="一张{}的图片"),
            }
        """,
        tmp_path,
    )
    for kind in KINDS:
        there = result[kind]
        assert there["classes"] == ["WukongModel", "WukongModel", "WukongProcessor", "WukongModel"]
        model, processor = WukongModel.from_pretrained(folder / kind), tiny_wukong_processor()
        expected = torch.tensor(logits(model, processor))
        torch.testing.assert_close(torch.tensor(there["logits"]), expected)
        torch.testing.assert_close(torch.tensor(there["again"]), expected)
        inputs = processor(images=[tiny_image()] * 2, text=TEXTS, return_tensors="pt")
        with torch.no_grad():
            assert there["loss"] == pytest.approx(model(**inputs, return_loss=True).loss.item(), rel=1e-5)
        assert {score["label"] for score in there["scores"]} == set(LABELS)
    # and what the fresh process saved loads here
    back = WukongModel.from_pretrained(tmp_path / "elsewhere" / "wukong")
    torch.testing.assert_close(torch.tensor(logits(back, tiny_wukong_processor())), expected)


def test_every_auto_class_is_in_the_saved_folder(folder):
    config = json.loads((folder / "wukong" / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {
        "AutoConfig": "configuration_wukong.WukongConfig",
        "AutoModel": "modeling_wukong.WukongModel",
        "AutoModelForZeroShotImageClassification": "modeling_wukong.WukongModel",
    }
    processor = json.loads((folder / "wukong" / "processor_config.json").read_text(encoding="utf-8"))
    assert processor["auto_map"] == {"AutoProcessor": "processing_wukong.WukongProcessor"}

"""The examples of fine-tuning run as they stand, on tiny models and few pairs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForImageClassification

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.tiny import tiny_config

from .conftest import Colors

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that knows the characters of Colours and of the demo's names."""
    pytest.importorskip("emoji")
    folder = tmp_path_factory.mktemp("model")
    texts = [*(Colors().texts(i)[0] for i in range(8)), *EmojiPairs(["twitter"]).names()]
    tokenizer = build_character_tokenizer(texts, max_length=16)
    config = tiny_config("resnet", max_text_length=16)
    config.text_config.vocab_size = len(tokenizer)
    R2D2ForPreTraining(config).save_pretrained(folder)
    R2D2Processor.build(tokenizer, image_size=32, max_length=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    pairs, lines = Colors(), []
    for index in range(len(pairs)):
        pairs[index]["image"].save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "text": pairs.texts(index)[0]}, ensure_ascii=False))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "pairs.jsonl"


def test_finetune_retrieval(model, data, tmp_path, monkeypatch, capsys):
    small = ("--epochs", 1, "--batch-size", 8)
    run_example(
        "finetune_retrieval.py", monkeypatch, "--model", model, "--data", data, "--output", tmp_path / "run", *small
    )
    printed = capsys.readouterr().out
    assert "21 pairs of 21 pictures" in printed
    assert "best mean recall on 3 validation pairs" in printed
    AutoModel.from_pretrained(tmp_path / "run")


def test_finetune_matching(model, data, tmp_path, monkeypatch, capsys):
    paths = ("--model", model, "--data", data, "--validation", data, "--output", tmp_path / "run")
    run_example("finetune_matching.py", monkeypatch, *paths, "--epochs", 1, "--batch-size", 8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("红色的图片: 0.") or lines[-2].startswith("红色的图片: 1.")


def test_caption_images(model, data, tmp_path, monkeypatch, capsys):
    images = [data.parent / "0.png", data.parent / "1.png"]
    paths = ("--model", model, "--data", data, "--output", tmp_path / "run")
    run_example("caption_images.py", monkeypatch, *images, *paths, "--epochs", 1, "--batch-size", 8)
    first = capsys.readouterr().out.splitlines()[-2:]
    run_example("caption_images.py", monkeypatch, *images, "--captioner", tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-2:] == first
    assert [line.split(": ")[0] for line in first] == [str(image) for image in images]


def test_classify_images(model, data, tmp_path, monkeypatch, capsys):
    paths = ("--model", model, "--data", data, "--validation", data, "--output", tmp_path / "run")
    image = data.parent / "0.png"
    run_example("classify_images.py", monkeypatch, image, *paths, "--epochs", 1, "--batch-size", 8)
    name, found = capsys.readouterr().out.splitlines()[-1].split(": ")
    assert name == str(image)
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert found.partition(" (")[0] in classifier.config.label2id
    assert len(classifier.config.label2id) == len({Colors().texts(i)[0] for i in range(len(Colors()))})


def test_lora(model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    run_example("lora.py", monkeypatch, "--model", model, "--output", tmp_path / "run", "--concepts", 16, "--epochs", 1)
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["before", "with the adapter", "merged"]
    assert lines[1].split(": ")[1] == lines[2].split(": ")[1]

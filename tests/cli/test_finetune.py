"""`r2d2 finetune` end to end on tiny files."""

import json

import pytest
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForImageTextToText
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.cli import app
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.tiny import tiny_config

runner = CliRunner()
TEXTS = ["一只小狗", "一只小猫", "红色的汽车", "绿色的树", "蓝色的天空", "白色的云", "黑色的夜晚", "黄色的花"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    for name, labelled in (("train", False), ("val", False), ("labelled", True)):
        lines = []
        for number, text in enumerate(TEXTS):
            Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 99)).save(folder / f"{name}{number}.png")
            pair = {"image": f"{name}{number}.png", "text": text} | ({"label": number % 2} if labelled else {})
            lines.append(json.dumps(pair, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    R2D2ForPreTraining(tiny_config("resnet", max_text_length=16)).save_pretrained(folder / "base")
    tokenizer = build_character_tokenizer(TEXTS)
    R2D2Processor.build(tokenizer, image_size=32, max_length=16).save_pretrained(folder / "base")
    return folder


def arguments(data, output, task: str, *more: str, pairs: str = "train.jsonl") -> list[str]:
    return [
        *("finetune", task, "--model", str(data / "base"), "--data", str(data / pairs)),
        *("--output", str(output), "--epochs", "2", "--batch-size", "4", "--workers", "0", *more),
    ]


@pytest.mark.parametrize(
    ("task", "more", "kind"),
    [
        ("retrieval", ("--preset", "small", "--dora", "--lora", "2"), AutoModel),
        ("matching", ("--rate", "text_model=0.1", "--validation-share", "0.25"), AutoModel),
        ("caption", ("--freeze-nothing",), AutoModelForImageTextToText),
    ],
)
def test_tasks(data, tmp_path, task, more, kind):
    if "--lora" in more:
        pytest.importorskip("peft")
    if "--validation-share" not in more:
        more = (*more, "--validation", str(data / "val.jsonl"), "--patience", "1")
    result = runner.invoke(app, arguments(data, tmp_path / "run", task, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "parameters train" in result.output
    assert "8 pairs" in result.output or "6 pairs" in result.output
    kind.from_pretrained(tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "finetuning.json").read_text(encoding="utf-8"))["settings"]
    if task == "retrieval":
        assert settings["lora"]["dora"]
        assert (settings["lora"]["rank"], settings["lora"]["alpha"]) == (2, 4)
        assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    if task == "matching":
        assert settings["rates"] == {"text_model": 0.1}
    if task == "caption":
        assert settings["freeze"] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--validation", "train.jsonl"), "the validation data are the training data"),
        (("--validation", "val.jsonl", "--test", "val.jsonl"), "are test data"),
        (("--validation", "val.jsonl", "--validation-share", "0.1"), "not both"),
        (("--validation-split", "val"), "name them with --validation"),
        (("--validation", ".", "--validation-split", "test"), "is a test split by its name"),
        (("--lora", "0", "--dora"), "trains whole weights"),
        (("--rate", "text_model"), "write a name and a number"),
        (("--preset", "huge"), "there are published, small"),
        (("--freeze", "poetry"), "matches no parameter"),
        (("--freeze", "text_model", "--freeze-nothing"), "not both"),
        (("--prompt", "一张{}的图片"), "prompts belong to the task classification"),
    ],
)
def test_refused(data, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(data)
    command = arguments(data, tmp_path / "run", "retrieval", *more)
    result = runner.invoke(app, command)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_splits_of_one_folder(data, tmp_path):
    splits = ("--split", "train", "--validation", str(data), "--validation-split", "val", "--patience", "1")
    result = runner.invoke(
        app, arguments(data, tmp_path / "run", "retrieval", *splits, pairs="."), catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert f"{data.name} (train)" in (tmp_path / "run" / "finetuning.json").read_text(encoding="utf-8")
    same = ("--split", "train", "--validation", str(data), "--validation-split", "train")
    result = runner.invoke(app, arguments(data, tmp_path / "other", "retrieval", *same, pairs="."))
    assert "the validation data are the training data" in str(result.exception)
    result = runner.invoke(app, arguments(data, tmp_path / "other", "retrieval", *same[:-2], pairs="."))
    assert "name the split of both" in str(result.exception)


def test_labels_of_matching_pairs(data, tmp_path):
    """They are read where their column is named, and the run says what it takes the pairs for."""
    labelled = arguments(data, tmp_path / "run", "matching", "--label", "label", pairs="labelled.jsonl")
    result = runner.invoke(app, labelled, catch_exceptions=False)
    assert "labels: 4 of 8 pairs match" in result.output
    plain = arguments(data, tmp_path / "plain", "matching", "--rate", "text_model=0.1")
    assert "labels: none, so every pair counts as true" in runner.invoke(app, plain, catch_exceptions=False).output
    result = runner.invoke(app, arguments(data, tmp_path / "other", "matching", "--label", "match"))
    assert "no column 'match'" in str(result.exception)
    retrieval = arguments(data, tmp_path / "more", "retrieval", "--label", "label", pairs="labelled.jsonl")
    assert "retrieval learns from true ones" in str(runner.invoke(app, retrieval).exception)


def test_a_class_that_is_held_out_whole(data, tmp_path):
    """Every class here has one picture, so the part that is set aside holds classes of its own."""
    more = ("--validation-share", "0.25", "--prompt", "一张{}的图片")
    line = arguments(data, tmp_path / "run", "classification", *more)
    result = runner.invoke(app, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.num_labels == 8
    alike = arguments(data, tmp_path / "other", "classification", "--prompt", "一张图片")
    assert "has no {} for the class" in str(runner.invoke(app, alike).exception)


def test_a_folder_of_classes(data, tmp_path):
    """Each sub-folder is a class, in training and validation alike; junk is left out, what is ignored is told."""
    for part, classes in (("train", TEXTS[:3]), ("val", TEXTS[:2])):
        for number, name in enumerate(classes):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for copy in range(2):
                path = tmp_path / "set" / part / name / f"{part}.{copy}.png"
                Image.new("RGB", (32, 32), (30 * number, 255, 20 * copy)).save(path)
            Image.new("RGB", (32, 32)).save(path.with_name("._0.png"))
    splits = ("--split", "train", "--validation", str(tmp_path / "set"), "--validation-split", "val")
    line = arguments(data, tmp_path / "run", "classification", *splits, pairs=str(tmp_path / "set"))
    result = runner.invoke(app, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "6 pairs" in result.output
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert set(model.config.label2id) == set(TEXTS[:3])

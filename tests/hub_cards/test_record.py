"""What `r2d2 pretrain` writes of its data and of where it began, and what a card makes of it."""

import json
import re
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.cli import app
from modeling_r2d2.finetuning import FinetuningSettings, finetune
from modeling_r2d2.hub_cards import DataSource, check_card, model_card, plan_push
from modeling_r2d2.hub_cards.checking import load_card
from modeling_r2d2.jobs.record import FINETUNING_FILE, RECORD_FILE, RunRecord, TrainingData, describe_start
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.training.start import StartingPoint
from tests.helpers import tiny_image
from tests.tiny import tiny_config

TEXTS = ["一只小狗", "一只小猫", "红色的车", "绿色的树", "蓝色的天", "白色的云"]


def write_pairs(folder: Path, name: str, count: int = 6, broken: int = 0) -> Path:
    """Pairs of which two share a picture; `broken` more have a picture whose pixels are cut off."""
    rows = []
    for place in range(count):
        tiny_image(place).save(folder / f"{place}.png")
        rows.append({"image": f"{max(place, 1)}.png", "text": TEXTS[place]})
    for place in range(broken):
        whole = (folder / "1.png").read_bytes()
        (folder / f"broken-{place}.png").write_bytes(whole[: len(whole) // 2])
        rows.append({"image": f"broken-{place}.png", "text": "一只马"})
    path = folder / name
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments):
    app([str(each) for each in arguments], standalone_mode=False)


def row(card, label):
    (value,) = re.findall(rf"^\| {re.escape(label)} \| (.*?) \|", card.text, re.MULTILINE)
    return value


def test_card_of_a_run_names_its_data_and_its_start(tmp_path):
    """A run, and the same lengthened; on other data it is refused."""
    tiny_config("resnet", max_text_length=16).save_pretrained(tmp_path / "small")
    first, second = write_pairs(tmp_path, "first.jsonl"), write_pairs(tmp_path, "second.jsonl", broken=1)
    output = tmp_path / "run"
    shared = ["--config", tmp_path / "small", "--output", output, "--batch-size", 3, "--workers", 0]
    build_character_tokenizer([*TEXTS, "马"]).save_pretrained(tmp_path / "characters")
    shared += [
        "--tokenizer",
        tmp_path / "characters",
        "--save-every",
        2,
        "--max-error-rate",
        0.5,
        "--no-distil",
        "--mask-ratio",
        0,
    ]
    run("pretrain", "--data", first, "--steps", 2, *shared)
    run("card", output)
    card = load_card(output / "README.md")
    assert "- Base model: none: random weights (`small`)" in card.text
    assert "| first.jsonl | unknown |" in card.text
    assert row(card, "data, counted") == "6 pairs, 5 pictures, 6 texts"
    assert row(card, "objectives") == "GCPR + FGR"
    with pytest.raises(ValueError, match=r"data\.pairs 6, this run has 7; data\.texts"):
        run("pretrain", "--data", second, "--steps", 6, "--resume", *shared)
    run("pretrain", "--data", first, "--steps", 6, "--resume", *shared)
    run("card", output, "--overwrite", "--language", "zh")
    card = load_card(output / "README.md")
    assert "- 基础模型：无：随机权重（`small`）" in card.text
    assert "| first.jsonl | 未知 |" in card.text
    assert "second.jsonl" not in card.text
    assert row(card, "数据量") == "6 pairs, 5 pictures, 6 texts"
    plan = plan_push(output)
    assert plan.problems == plan.warnings == []
    assert str(tmp_path) not in (output / RECORD_FILE).read_text(encoding="utf-8")


def test_card_of_a_fine_tuning_that_was_resumed(tmp_path):
    """Stopped before it has saved a model, then resumed; one picture is broken."""
    processor = R2D2Processor.build(build_character_tokenizer([*TEXTS, "马"]), image_size=32, max_length=16)
    base, output = tmp_path / "base", tmp_path / "tuned"
    R2D2ForPreTraining(tiny_config("resnet", max_text_length=16)).save_pretrained(base)
    processor.save_pretrained(base)
    first, second = write_pairs(tmp_path, "first.jsonl"), write_pairs(tmp_path, "second.jsonl", broken=1)

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    def tune(data, epochs, callbacks=None, resume=False):
        chosen = {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 3,
            "dataloader_num_workers": 0,
            "resume": resume,
        }
        settings = FinetuningSettings.from_preset("retrieval", output, **chosen)
        pairs = load_pairs(str(data), max_error_rate=0.5)
        finetune(base, pairs, settings, callbacks=callbacks, data=TrainingData.of(str(data), pairs))

    with pytest.raises(KeyboardInterrupt):
        tune(second, 2, [Stop()])
    assert not (output / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"data\.pairs 7, this run has 6; data\.texts"):
        tune(first, 2, resume=True)
    with pytest.raises(ValueError, match="epochs 2, this run has 3"):
        tune(second, 3, resume=True)
    tune(second, 2, resume=True)
    card = model_card(output)
    assert "- Base model: `base`\n" in card.text
    assert "| second.jsonl | unknown |" in card.text
    assert "first.jsonl" not in card.text
    assert row(card, "data, counted") == "7 pairs, 6 pictures, 7 texts; 1 bad records left out"
    assert str(tmp_path) not in (output / FINETUNING_FILE).read_text(encoding="utf-8")


def test_a_fine_tuned_model_of_the_hub(folders, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(folders["finetuned"], folder)
    held = json.loads((folder / FINETUNING_FILE).read_text(encoding="utf-8"))
    held["record"] = asdict(RunRecord([], {"model": "owner/model"}, ["owner/model"]))
    (folder / FINETUNING_FILE).write_text(json.dumps(held), encoding="utf-8")
    card = model_card(folder)
    assert card.data.base_model == "owner/model"
    assert "- Base model: [owner/model](https://huggingface.co/owner/model)" in card.text
    assert "| unknown | unknown |" in card.text
    held["record"] = {"start": {}}
    (folder / FINETUNING_FILE).write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{FINETUNING_FILE} is no record of `r2d2 finetune`"):
        model_card(folder)


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "image tower of [{0}]({1}{0}), text tower of [{2}]({1}{2}); the rest began at random"),
        ("zh", "图像塔取自 [{0}]({1}{0})，文本塔取自 [{2}]({1}{2})，其余随机初始化"),
    ],
)
def test_warm_towers_of_the_hub_are_base_models(language, sentence, folders, tmp_path):
    folder = tmp_path / "warm"
    shutil.copytree(folders["pretrained"], folder)
    names, hub = describe_start(StartingPoint(clip="owner/clip", roberta="owner/roberta"))
    RunRecord([TrainingData("pairs.jsonl", 10, 9, 8)], names, hub, "GCPR").write(folder)
    card = model_card(folder, language=language)
    assert sentence.format("owner/clip", "https://huggingface.co/", "owner/roberta") in card.text
    assert check_card(str(card), "model", folder) == []
    assert yaml.safe_load(str(card).split("---")[1])["base_model"] == ["owner/clip", "owner/roberta"]
    # what the user says comes first
    card = model_card(folder, language=language, base_model="me/base", data=[DataSource("mine", "mit")])
    assert card.data.base_model == "me/base"
    assert "owner/clip" not in card.text
    assert "| mine | mit |" in card.text
    assert "pairs.jsonl" not in card.text


def test_starting_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    cases = [
        (StartingPoint(model=Path("runs/base")), {"model": "base"}, []),
        (StartingPoint(model=tmp_path / "runs/base"), {"model": "base"}, []),
        (StartingPoint(model=Path("owner/model")), {"model": "owner/model"}, ["owner/model"]),
        (StartingPoint(preset="prd2-vit-b-16"), {"preset": "prd2-vit-b-16"}, []),
        (StartingPoint(config=tmp_path / "my.json"), {"config": "my.json"}, []),
        (
            StartingPoint(clip=str(tmp_path / "runs/base"), roberta="hfl/roberta", tokenizer="x"),
            {"clip": "base", "roberta": "hfl/roberta"},
            ["hfl/roberta"],
        ),
    ]
    for start, names, hub in cases:
        assert describe_start(start) == (names, hub)


def test_streams_are_counted_in_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"part-{shard}.tar", "w") as archive:
            tiny_image(shard).save(tmp_path / "a.png")
            (tmp_path / "a.txt").write_text("一只猫", encoding="utf-8")
            for name in ("a.png", "a.txt"):
                archive.add(tmp_path / name, name)
    source = str(tmp_path / "part-{0..1}.tar")
    found = TrainingData.of(source, load_pairs(source))
    assert found == TrainingData(f"{tmp_path.name}/part-{{0..1}}.tar", shards=2)
    assert found.counted() == "a stream of 2 shards"


def test_torn_record(folders, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(folders["prd2"], folder)
    assert RunRecord.read(folder) is None
    record = RunRecord([TrainingData("集合", 1, 1, 1, bad_records=3)], {"preset": "x"}, [], None)
    record.write(folder)
    assert RunRecord.read(folder) == record
    for content in ("{", "[]", '{"data": [{"nom": 1}], "start": {}}'):
        (folder / RECORD_FILE).write_text(content)
        with pytest.raises(ValueError, match=rf"{RECORD_FILE} is no record"):
            model_card(folder)

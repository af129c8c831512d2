"""What `r2d2 pretrain`, `finetune`, `convert` and `demo` write gets a card, filled from the run itself."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model
from modeling_r2d2.cli import app
from modeling_r2d2.hub_cards import plan_push
from modeling_r2d2.hub_cards.checking import load_card
from modeling_r2d2.integrations import convert_to_folder
from tests.hub_cards.conftest import FINETUNING
from tests.integrations.conversion.official_files import official_tensors, wide_config
from tests.tiny import tiny_config

TEXTS = ["一只小狗", "一只小猫", "红色的汽车", "绿色的树", "蓝色的天空", "白色的云", "黑色的夜晚", "黄色的花"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def rows(card):
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", card.text, re.MULTILINE))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pairs, and the run of `r2d2 pretrain` on them."""
    folder = tmp_path_factory.mktemp("outputs")
    lines = []
    for number, text in enumerate(TEXTS):
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 99)).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tiny_config("resnet", max_text_length=16).save_pretrained(folder / "config")
    line = ["--data", folder / "pairs.jsonl", "--output", folder / "run", "--batch-size", 4, "--workers", 0]
    run(
        "pretrain", *line, "--config", folder / "config", "--steps", 4, "--save-every", 2, "--log-every", 1, "--seed", 5
    )
    return folder


def test_pre_training(trained):
    run("card", trained / "run")
    card = load_card(trained / "run" / "README.md")
    found = rows(card)
    assert found["steps"] == found["steps made"] == "4"
    assert found["batch size per worker"] == "4"
    assert found["learning rate"] == "0.0001"
    assert found["seed"] == "5"
    assert {"loss_fgr", "loss_gcpr"} <= set(found["losses"].split(", "))
    assert float(found["last logged loss"]) > 0
    assert "They were pre-trained with" in card.text
    assert "resnet" in found["image tower"]
    plan = plan_push(trained / "run")
    assert plan.problems == []
    assert "training_args.bin" in plan.left_out
    assert not any(name.startswith("checkpoint") for name in plan.files)


def test_fine_tuning(trained):
    pytest.importorskip("peft")
    output = trained / "tuned"
    line = ["--model", trained / "run", "--data", trained / "pairs.jsonl", "--output", output, "--workers", 0]
    run("finetune", "retrieval", *line, "--epochs", 2, "--batch-size", 4, "--preset", "small", "--lora", 2)
    run("card", output, "--language", "zh")
    card = load_card(output / "README.md")
    found = rows(card)
    assert found["任务"] == "retrieval"
    assert (found["轮数"], found["步数"]) == ("2", "4")
    assert found["数据量"] == "8 pairs, 8 pictures, 8 texts"
    assert "LoRA of rank 2" in found["训练的参数"]
    assert "微调得到" in card.text
    assert "- 基础模型：`run`\n" in card.text
    assert found["pairs.jsonl"] == "未知"
    plan = plan_push(output)
    assert plan.problems == []
    assert "trainer_state.json" in plan.left_out
    assert str(trained) not in (output / "finetuning.json").read_text(encoding="utf-8")


@pytest.fixture
def used(trained, tmp_path):
    """A folder that holds a demo, a fine-tuning and checkpoints of a longer run, and a file of the user's."""
    folder = tmp_path / "used"
    shutil.copytree(trained / "run", folder, ignore=shutil.ignore_patterns("*.md"))
    (folder / "checkpoint-4").rename(folder / "checkpoint-500")
    (folder / "finetuning.json").write_text(json.dumps(FINETUNING), encoding="utf-8")
    recalls = {"text_to_image_r1": 60.0}
    vendor = {"images": 300, "texts": 300, "candidates": 32, "pre_ranking": recalls, "two_stage": recalls}
    held = {"settings": {}, "training_seconds": 350.0, "vendors": {"twitter": vendor}}
    (folder / "results.json").write_text(json.dumps(held), encoding="utf-8")
    return folder


def test_pre_training_over_another_run(trained, used):
    """What the replaced model's runs have left says nothing of the new one."""
    line = ["--data", trained / "pairs.jsonl", "--config", trained / "config", "--output", used, "--overwrite"]
    run("pretrain", *line, "--batch-size", 4, "--steps", 1, "--save-every", 0, "--log-every", 1, "--workers", 0)
    assert not list(used.glob("checkpoint-*"))  # a later --resume would go on from the replaced run's
    run("card", used)
    card = load_card(used / "README.md")
    found = rows(card)
    assert "They were pre-trained with" in card.text
    assert found["steps"] == found["steps made"] == "1"
    assert "task" not in found
    assert found["data, counted"] == "8 pairs, 8 pictures, 8 texts"
    assert card.data.eval_results is None


def test_fine_tuning_over_another_run(trained, used):
    (used / "results.json").write_text('{"mine": 1}', encoding="utf-8")
    line = ["--model", trained / "run", "--data", trained / "pairs.jsonl", "--output", used, "--workers", 0]
    run("finetune", "retrieval", *line, "--epochs", 1, "--batch-size", 8, "--overwrite")
    assert not (used / "pretraining.json").exists()
    assert not (used / "training_args.bin").exists()
    assert not (used / "checkpoint-500").exists()
    assert (used / "results.json").read_text() == '{"mine": 1}'
    (used / "results.json").unlink()  # `r2d2 card` would refuse it as results
    run("card", used)
    card = load_card(used / "README.md")
    assert rows(card)["steps"] == rows(card)["steps made"] == "1"
    assert "optimiser" not in rows(card)


def test_conversion(tmp_path):
    """A new card of a converted folder keeps what the conversion's own card says of the file."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*special, *(chr(0x4E00 + i) for i in range(45))]) + "\n", encoding="utf-8")
    torch.save({"model": official_tensors(R2D2Model(wide_config()))}, tmp_path / "official.pth")
    digest = hashlib.sha256((tmp_path / "official.pth").read_bytes()).hexdigest()
    convert_to_folder(tmp_path / "official.pth", tmp_path / "out", vocab=vocab, source="a mirror")
    own = load_card(tmp_path / "out" / "README.md")
    assert plan_push(tmp_path / "out").problems == []
    run("card", tmp_path / "out", "--overwrite")
    card = load_card(tmp_path / "out" / "README.md")
    for text in (digest, "official.pth", "a mirror", "Nothing was trained here"):
        assert text in own.text
        assert text in card.text
    assert own.data.license_name == "not-stated-in-the-checkpoint"
    assert card.data.license == "unknown"


def test_demo(trained, tmp_path):
    """The demo's results.json fills training and figures; written here as the demo writes it."""
    folder = tmp_path / "demo"
    others = shutil.ignore_patterns(
        "checkpoint-*", "training_args.bin", "trainer_state.json", "pretraining.json", "*.md"
    )
    shutil.copytree(trained / "run", folder, ignore=others)
    recalls = {f"text_to_image_r{k}": value for k, value in ((1, 60.0), (5, 80.0), (10, 89.0))}
    vendor = {"images": 300, "texts": 300, "candidates": 32, "pre_ranking": recalls, "two_stage": recalls}
    settings = {
        "max_steps": 1300,
        "per_device_train_batch_size": 150,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "seed": 0,
    }
    results = {"settings": settings, "training_seconds": 350.0, "vendors": {"twitter": vendor, "windows": vendor}}
    (folder / "results.json").write_text(json.dumps(results))
    run("card", folder)
    card = load_card(folder / "README.md")
    assert len(card.data.eval_results) == 12
    assert rows(card)["steps"] == "1300"
    assert rows(card)["seconds of training"] == "350.0"
    assert "300 pictures, 300 texts; 32 candidates ranked" in card.text

"""The command line, end to end on tiny data: pretrain with broken records and resume; clear errors."""

import json
import sys
import tarfile

import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2.cli import app, main
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.tiny import tiny_config

runner = CliRunner()
TEXTS = ["一只小狗", "一只小猫", "红色的汽车", "绿色的树", "蓝色的天空", "白色的云", "黑色的夜晚", "黄色的花"]


@pytest.fixture
def data(tmp_path):
    """Eight pictures and their captions as JSONL, and a small configuration."""
    lines = []
    for number, text in enumerate(TEXTS):
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 99)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tiny_config("resnet").save_pretrained(tmp_path / "config")
    return tmp_path


def arguments(data, *more: str) -> list[str]:
    return [
        "pretrain",
        *("--data", str(data / "pairs.jsonl"), "--config", str(data / "config"), "--output", str(data / "run")),
        *("--steps", "4", "--batch-size", "4", "--workers", "0", "--save-every", "2", *more),
    ]


def test_pretrain_and_resume(data):
    result = runner.invoke(app, arguments(data, "--eval-data", str(data / "pairs.jsonl")), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "8 pairs" in result.output
    assert "held out: " in result.output
    history = json.loads((data / "run" / "trainer_state.json").read_text())["log_history"]
    (found,) = (logs for logs in history if "eval_loss" in logs)
    assert f"loss {found['eval_loss']:.4g}" in " ".join(result.output.split())
    model, processor = AutoModel.from_pretrained(data / "run"), AutoProcessor.from_pretrained(data / "run")
    batch = processor(text=TEXTS[:2], images=[Image.new("RGB", (50, 20))], return_tensors="pt")
    assert model(**batch).logits_per_image.shape == (1, 2)
    again = runner.invoke(app, arguments(data))
    assert isinstance(again.exception, FileExistsError)
    resumed = runner.invoke(app, [*arguments(data, "--resume"), "--steps", "6"], catch_exceptions=False)
    assert resumed.exit_code == 0, resumed.output


def test_held_out_pairs_are_evaluated_once_after_the_last_step(data):
    """Of a format of their own; and a run may log nothing."""
    (data / "held.txt").write_text("image\ttext\n0.png\t一只小狗\n1.png\t一只小猫\n", encoding="utf-8")
    more = ("--eval-data", str(data / "held.txt"), "--eval-format", "tsv", "--eval-every", "2", "--log-every", "0")
    result = runner.invoke(app, arguments(data, *more), catch_exceptions=False)
    assert "held out: " in result.output
    history = json.loads((data / "run" / "trainer_state.json").read_text())["log_history"]
    assert [logs["step"] for logs in history if "eval_loss" in logs] == [2, 4]


def test_splits_of_one_folder(data):
    (data / "held.jsonl").write_text((data / "pairs.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    splits = ("--data", str(data), "--split", "pairs", "--eval-data", str(data), "--eval-split", "held")
    result = runner.invoke(app, arguments(data, *splits), catch_exceptions=False)
    assert "held out: " in result.output
    assert f"{data.name} (pairs)" in (data / "run" / "pretraining.json").read_text(encoding="utf-8")
    result = runner.invoke(app, arguments(data, "--eval-split", "held", "--overwrite"))
    assert "name them with --eval-data" in str(result.exception)


def test_labelled_pairs_are_no_pre_training_data(data):
    lines = [json.loads(line) for line in (data / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{"image_path": row["image"], "text": row["text"], "label": n % 2} for n, row in enumerate(lines)]
    labelled = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (data / "pairs.jsonl").write_text(labelled, encoding="utf-8")
    result = runner.invoke(app, arguments(data, "--format", "icm"))
    assert "labelled pairs" in str(result.exception)
    result = runner.invoke(app, arguments(data, "--eval-data", str(data / "pairs.jsonl"), "--eval-format", "icm"))
    assert "labelled pairs" in str(result.exception)
    assert not (data / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("紫色的鸟和鱼", "this run has one of 30"), ("一只小鹿", "this run has as many, but others")],
)
def test_resuming_with_a_vocabulary_of_other_texts_is_refused(data, text, message):
    """Of another size, or of the same size with other characters; another run from the checkpoint reads them."""
    runner.invoke(app, arguments(data), catch_exceptions=False)
    pairs = (data / "pairs.jsonl").read_text(encoding="utf-8")
    (data / "pairs.jsonl").write_text(pairs.replace("一只小狗", text), encoding="utf-8")
    more = arguments(data, "--resume", "--steps", "5")
    result = runner.invoke(app, more)
    assert isinstance(result.exception, ValueError)
    assert "a vocabulary of 27 entries" in str(result.exception)
    assert message in str(result.exception)
    checkpoint = str(data / "run" / "checkpoint-4")
    assert f"--model {checkpoint}` and another --output" in str(result.exception)
    place = more.index("--config")
    with_model = [*more[:place], "--model", checkpoint, *more[place + 2 :]]
    refused = runner.invoke(app, with_model)
    assert "data.texts" in str(refused.exception)
    with_model.remove("--resume")
    with_model[with_model.index("--output") + 1] = str(data / "other")
    again = runner.invoke(app, with_model, catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert json.loads((data / "other" / "pretraining.json").read_text())["start"] == {"model": "checkpoint-4"}


def test_too_many_broken_records_are_refused_by_file_and_line(data, caplog):
    with (data / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"image": "missing.png", "text": "没有"}\nnot json\n')
    result = runner.invoke(app, arguments(data))
    assert "pairs.jsonl:9" in str(result.exception)
    assert "pairs.jsonl:10" in str(result.exception)
    tolerant = runner.invoke(app, arguments(data, "--max-error-rate", "0.5"), catch_exceptions=False)
    assert tolerant.exit_code == 0
    assert (caplog.text + tolerant.output).count("pairs.jsonl:9") == 1


def test_pretrain_on_a_stream_of_shards(data):
    for shard in range(2):
        with tarfile.open(data / f"shard-{shard:03}.tar", "w") as archive:
            for number in range(4 * shard, 4 * shard + 4):
                (data / f"{number}.txt").write_text(TEXTS[number], encoding="utf-8")
                for suffix in ("png", "txt"):
                    archive.add(data / f"{number}.{suffix}", f"{number}.{suffix}")
    command = arguments(data)
    command[command.index("--data") + 1] = str(data / "shard-*.tar")
    refused = runner.invoke(app, command)
    assert "--tokenizer" in str(refused.exception)
    build_character_tokenizer(TEXTS).save_pretrained(data / "tokenizer")
    result = runner.invoke(app, [*command, "--tokenizer", str(data / "tokenizer")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "a stream of 2 shards" in result.output
    assert (data / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("extra", [[], ["--preset", "r2d2-vit-b-16"]])
def test_one_starting_point(data, extra):
    command = [a for a in arguments(data, *extra) if a not in ("--config", str(data / "config"))]
    command += ["--config", str(data / "config")] if extra else []
    result = runner.invoke(app, command)
    assert "one starting point" in str(result.exception)


def test_errors_are_one_line_without_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["r2d2", "convert", "nowhere.pth", "out"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "nowhere.pth" in capsys.readouterr().err

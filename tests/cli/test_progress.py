"""Progress of long verbs: how much of how much, and the time left; on stderr, and not of what is quick."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.processing.files import progress as bars
from tests.helpers import tiny_image, tiny_model, tiny_processor

pytest.importorskip("faiss")

#: 3/12 [00:01<00:03: so many of so many, the time it took and the time left.
STATE = r"{doing}:\s+\d+%.* \d+/{total} \[\d\d:\d\d<[\d:?]+,"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("progress")
    torch.manual_seed(0)
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    lines = []
    for number, text in enumerate(["猫", "狗", "马", "鱼", "鸟", "车", "船", "山", "水", "火", "木", "天"]):
        tiny_image(number).save(root / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def at_once(monkeypatch):
    """Every state is written, from the first second on."""
    monkeypatch.setattr(bars, "_LOG", 0.0)
    monkeypatch.setitem(bars._state, "shown", True)


def run(*arguments) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.stdout, result.stderr


def test_verbs_show_the_total_and_the_time_left(place, tmp_path, at_once):
    data, model = place / "pairs.jsonl", place / "model"
    commands = {
        "indexing": (12, ("index", data, "--model", model, "--output", tmp_path / "index", "--batch-size", 5)),
        "checking": (12, ("data", "check", data)),
        "encoding pictures": (12, ("evaluate", "--data", data, "--model", model, "--output", tmp_path / "out")),
        "ranking": (24, ("calibrate", model, "--data", data, "--per-positive", 1)),
    }
    for doing, (total, command) in commands.items():
        stdout, stderr = run(*command)  # the fit may fail on random weights, after the ranking
        assert re.search(STATE.format(doing=doing, total=total), stderr), (doing, stderr)
        assert doing not in stdout


def test_what_is_quick_or_not_of_the_command_line_shows_nothing(place, capsys, monkeypatch):
    assert list(bars.bar([1, 2], "counting")) == [1, 2]
    monkeypatch.setitem(bars._state, "shown", True)
    assert list(bars.bar([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_line_for_each_state_of_a_log(capsys, at_once):
    assert list(bars.bar(iter("abc"), "counting", total=3, unit="letters")) == list("abc")
    lines = capsys.readouterr().err.splitlines()
    assert re.match(STATE.format(doing="counting", total=3), lines[-1])
    assert "letters/s" in lines[-1]
    assert all("\r" not in line and "\x1b" not in line for line in lines)


def test_counting_for_the_bar_says_nothing_a_second_time(place, tmp_path, at_once, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    tiny_image(0).save(photos / "a.png")
    (photos / "clip.mp4").write_bytes(b"0")
    stdout, _ = run("index", photos, "--model", place / "model", "--output", tmp_path / "index")
    assert stdout.count("ignored: 1 .mp4") == 1
    assert "ignored" not in caplog.text

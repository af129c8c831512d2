"""The package's own sets in every verb that reads pairs, and the verb that writes scenes out."""

import json

import pytest
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.inference.calibrating import load_gallery
from modeling_r2d2.processing.datasets import scenes
from modeling_r2d2.search.store import ImageIndex
from tests.helpers import save_tiny_model

runner = CliRunner(env={"COLUMNS": "200"})


def run(*words):
    outcome = runner.invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome.output


@pytest.fixture
def few(monkeypatch):
    """Four twins a split: the verbs read them as they read hundreds."""
    monkeypatch.setattr(scenes, "TWINS", dict.fromkeys(scenes.SPLITS, 4))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("scenes") / "model")


def test_what_reads(few, model, tmp_path):
    checked = run("data", "check", "scenes:google,twitter/validation", "--sheet", tmp_path / "sheet.png")
    assert "scenes:google,twitter/validation" in checked
    assert (tmp_path / "sheet.png").is_file()
    judged = run("evaluate", "--two-stage", "--data", "scenes:twitter", "--model", model, "--output", tmp_path / "r")
    assert "scenes:twitter" in judged
    assert (tmp_path / "r" / "retrieval-scenes-twitter.json").is_file(), list((tmp_path / "r").iterdir())
    hard = run("data", "matching-pairs", "scenes:twitter", tmp_path / "list.jsonl")
    assert "24 of them matching" in hard


def test_calibrates(few):
    gallery = load_gallery("scenes:google,twitter/validation", split=None, format=None, columns=None)
    assert (len(gallery.images), len(gallery.texts), len(set(gallery.image_ids))) == (16, 16, 8)
    demo, named = load_gallery("demo"), load_gallery("emoji:samsung/calibration")
    assert len(demo.images) == 30
    assert (demo.image_ids, demo.texts) == (named.image_ids, named.texts)
    assert load_gallery("demo:twitter").texts == load_gallery("emoji:twitter").texts


def test_indexes(few, model, tmp_path):
    root = tmp_path / "index"
    words = ["index", "scenes:google,twitter/test", "--output", root, "--model", model]
    assert "16 pictures (16 added)" in run(*words)
    index = ImageIndex(root)
    assert {id.split("/")[0] for id in index.column("id").to_pylist()} == {"google", "twitter"}
    assert index.manifest.sources == ("scenes:google,twitter/test",)
    assert "16 unchanged" in run(*words, "--prune")
    assert "google/beside/" in run("search", root, "左边", "--top-k", "16")


def test_learns(few, model, tmp_path):
    small = ["--steps", 2, "--batch-size", 4, "--eval-every", 0, "--save-every", 0]
    run("pretrain", "--model", model, "--data", "scenes:google/train", "--output", tmp_path / "a", *small)
    assert json.loads((tmp_path / "a" / "pretraining.json").read_text())["data"][0] == {
        "name": "scenes:google/train",
        "pairs": 8,
        "images": 8,
        "texts": 24,
        "shards": None,
        "bad_records": 0,
        "license": "google: Apache-2.0",
    }
    tuned = ["finetune", "retrieval", "--model", model, "--data", "scenes:google/train", "--batch-size", 4]
    tuned += ["--epochs", 1, "--output", tmp_path / "b"]
    run(*tuned, "--validation", "scenes:google/validation")
    refused = runner.invoke(app, [str(word) for word in [*tuned, "--validation", "scenes:google/test"]])
    assert isinstance(refused.exception, (ValueError, FileExistsError))


def test_writes(few, model, tmp_path):
    folder = tmp_path / "scenes"
    words = ["data", "scenes", "--output", folder, "--twins", 4]
    assert "train: 8 pictures by google" in run(*words)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "google: Apache-2.0; twitter: CC BY 4.0" in card
    assert "| pairs | 8 |" in card
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run(*words)  # the same again
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == held
    matching = ["evaluate", "--task", "matching", "--data", folder / "test_matching.jsonl", "--label", "label"]
    assert "ROC-AUC" in run(*matching, "--model", model, "--output", tmp_path / "r")
    learn = ["pretrain", "--data", folder / "train.jsonl", "--group-column", "group", "--no-mirror", "--model", model]
    run(*learn, "--steps", 1, "--batch-size", 4, "--eval-every", 0, "--save-every", 0, "--output", tmp_path / "a")
    (folder / "train.jsonl").write_text("mine")
    refused = runner.invoke(app, [str(word) for word in words])
    assert isinstance(refused.exception, FileExistsError)
    card = runner.invoke(app, ["data", "card", "scenes:google/test"])
    assert "`r2d2 data scenes` writes scenes out" in str(card.exception)
    art = runner.invoke(app, ["data", "scenes", "--output", str(tmp_path / "b"), "--vendor", "apple"])
    assert "the art of apple is proprietary" in str(art.exception)
    assert not (tmp_path / "b").exists()

"""An index is no model, a model no index, and somebody's manifest.json makes neither of a folder."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model
from modeling_r2d2.cli import app
from modeling_r2d2.inference.folders import is_index, is_onnx_export
from modeling_r2d2.inference.identity import ModelIdentity
from modeling_r2d2.inference.loading import load_whole
from modeling_r2d2.search.manifest import Manifest
from tests.helpers import in_a_child, tiny_image, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, an empty index, a picture and a pair."""
    folder = tmp_path_factory.mktemp("kinds")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    (folder / "index").mkdir()
    Manifest(ModelIdentity("a", "b", str(folder / "model")), 16, {"keep": "none", "precision": "float16"}).save(
        folder / "index"
    )
    tiny_image(0).save(folder / "0.png")
    (folder / "pairs.jsonl").write_text('{"image": "0.png", "text": "一只猫"}\n' * 2)
    return folder


def run(line):
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize(
    "command",
    [
        "match 0.png 猫 --model index",
        "search index 猫 --model index",
        "index 0.png --output new --model index",
        "export index --output new",
        "calibrate index --data pairs.jsonl",
        "evaluate --data pairs.jsonl --model index --output new",
        "data matching-pairs pairs.jsonl new.jsonl --negatives fgr --model index",
        "pretrain --data pairs.jsonl --model index --output new",
        "finetune retrieval --data pairs.jsonl --model index --output new",
        "app --model index",
        "card index --measure-speed",
    ],
)
def test_index_given_as_a_model(made, monkeypatch, command):
    monkeypatch.chdir(made)
    outcome = run(command)
    assert isinstance(outcome.exception, ValueError), (outcome.output, outcome.exception)
    assert "it is an index" in str(outcome.exception)
    assert not (made / "new").exists()


@pytest.mark.parametrize("command", ["search model 猫", "index --output model --remove a", "app --index model"])
def test_model_given_as_an_index(made, monkeypatch, command):
    monkeypatch.chdir(made)
    outcome = run(command)
    assert isinstance(outcome.exception, (ValueError, FileExistsError)), (outcome.output, outcome.exception)
    assert "it is a model: make an index with" in str(outcome.exception)


def test_graphs_given_as_a_model_or_an_index(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    shutil.copytree(made / "model", tmp_path / "onnx", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "onnx" / "manifest.json").write_text('{"format": 1, "graphs": {}}')
    for command in ("export {} --output new", "finetune retrieval --data pairs.jsonl --model {} --output new"):
        assert "holds ONNX graphs" in str(run(command.format(tmp_path / "onnx")).exception)
    assert "it is a model" in str(run(f"search {tmp_path / 'onnx'} 猫").exception)
    assert "no such folder" in str(run(f"search {tmp_path / 'none'} 猫").exception)


def test_index_made_in_the_folder_of_a_model(made, monkeypatch):
    monkeypatch.chdir(made)
    outcome = run("index 0.png --output model --model model")
    assert isinstance(outcome.exception, FileExistsError)
    assert "holds no index, but" in str(outcome.exception)


@pytest.mark.parametrize("manifest", ['{"name": "web app", "icons": []}', "[]", "torn", '{"graphs": 1}'])
def test_somebodys_manifest_beside_a_model(made, tmp_path, manifest):
    folder = tmp_path / "model"
    shutil.copytree(made / "model", folder)
    (folder / "manifest.json").write_text(manifest)
    assert not is_index(folder)
    assert not is_onnx_export(folder)
    outcome = run(f"match {made / '0.png'} 猫 --model {folder} --json")
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_file_of_another_user_is_forbidden_and_not_missing(made, monkeypatch, name):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    message = folder / "message"
    try:
        folder.chmod(0o755)
        message.touch()
        message.chmod(0o666)
        shutil.copytree(made / "model", folder / "model")
        (folder / "model" / name).chmod(0o600)

        def load():
            os.setuid(65534)
            with pytest.raises(PermissionError) as caught:
                load_whole(R2D2Model, folder / "model")
            message.write_text(str(caught.value))

        os.waitpid(in_a_child(load), 0)
        assert "ermission denied" in message.read_text()
        assert name in message.read_text()
    finally:
        shutil.rmtree(folder)

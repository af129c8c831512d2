"""A training run removes and replaces only what runs have written; what a killed run leaves is cleared by the next."""

import errno
import json
import os
import resource
import stat

import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.jobs.checkpoints import (
    COMPLETE_FILE,
    complete_checkpoints,
    is_complete,
    mark_complete,
    remove_checkpoint,
    rotate_checkpoints,
)
from modeling_r2d2.processing.files.writing import STAMP, is_partial
from modeling_r2d2.training import trainer as trainer_module
from tests.helpers import die, killed
from tests.tiny import tiny_config

#: Files of a user, with names like those of this package, in the folder of a run.
FOREIGN = {
    "README.md": "my card",
    "adapter/notes.txt": "mine",
    "vectors.npy": "mine",
    "building": "mine",
    "unreadable.jsonl": "mine",
    "samples/step-000001.png": "mine",
    "checkpoint.txt": "mine",
    ".checkpoint-2.partial/a": "mine",
    ".model.safetensors.1.aside": "mine",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs and a configuration."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, text in enumerate(["一只小狗", "一只小猫", "红色的汽车", "绿色的树"]):
        Image.new("RGB", (32, 32), (60 * number, 255 - 60 * number, 99)).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    tiny_config("resnet", max_text_length=16).save_pretrained(folder / "config")
    return folder


def pretrain(data, output, *options):
    """The command; its outcome."""
    line = ["pretrain", "--data", data / "pairs.jsonl", "--config", data / "config", "--output", output]
    line += ["--batch-size", 2, "--steps", 2, "--save-every", 1, "--workers", 0, *options]
    return CliRunner().invoke(app, [str(each) for each in line])


def done(outcome):
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def held(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def checkpoint(folder, **files):
    put(folder, {"model.safetensors": "weights", **files})
    mark_complete(folder)
    return folder


@pytest.mark.parametrize("name", ["notes.txt", *FOREIGN, "checkpoint-2/pytorch_model.bin"])
def test_folder_of_something_else_is_refused(data, tmp_path, name):
    put(tmp_path, {name: "mine"})
    outcome = pretrain(data, tmp_path)
    assert isinstance(outcome.exception, FileExistsError)
    assert "already holds" in str(outcome.exception) or "holds something else" in str(outcome.exception)
    assert held(tmp_path) == {name: b"mine"}


def test_what_others_put_into_a_run_survives_the_next(data, tmp_path):
    before = os.umask(0o022)
    try:
        done(pretrain(data, tmp_path))
        assert {p.name for p in complete_checkpoints(tmp_path)} == {"checkpoint-1", "checkpoint-2"}
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {
            path.name: oct(path.stat().st_mode) for path in written if stat.S_IMODE(path.stat().st_mode) != 0o644
        } == {}
    finally:
        os.umask(before)
    put(tmp_path, FOREIGN)
    assert "already holds" in str(pretrain(data, tmp_path).exception)
    done(pretrain(data, tmp_path, "--overwrite", "--steps", 1, "--save-every", 0))
    found = held(tmp_path)
    assert {name: found.get(name, b"").decode() for name in FOREIGN} == FOREIGN
    assert not list(tmp_path.glob("checkpoint-*"))[1:]  # checkpoint.txt
    assert not [name for name in found if is_partial(name)]


def test_foreign_checkpoint_stops_the_run_before_it_begins(data, tmp_path):
    done(pretrain(data, tmp_path, "--steps", 1, "--save-every", 0))
    put(tmp_path, {"checkpoint-1/pytorch_model.bin": "mine"})
    before = held(tmp_path)
    outcome = pretrain(data, tmp_path, "--overwrite")
    assert isinstance(outcome.exception, FileExistsError)
    assert "checkpoint-1 is no checkpoint of this program" in str(outcome.exception)
    assert held(tmp_path) == before


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_run_does_not_replace_what_it_begins_with(verb, data, tmp_path):
    """Were it to fail, checkpoint and model would be gone."""
    output = tmp_path / "run"
    done(pretrain(data, output))
    before = held(output)
    for source in (output, output / "checkpoint-2"):
        options = ["--model", source, "--data", data / "pairs.jsonl", "--output", output, "--overwrite"]
        outcome = CliRunner().invoke(app, [str(part) for part in ("finetune", "retrieval", *options)])
        if verb == "pretrain":
            outcome = CliRunner().invoke(app, [str(part) for part in (verb, *options, "--steps", 3)])
        assert isinstance(outcome.exception, FileExistsError)
        assert f"begins with {source}" in str(outcome.exception)
        assert held(output) == before


def test_output_that_is_a_file_or_below_one(data, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        for options in ((), ("--overwrite",)):
            outcome = pretrain(data, output, *options)
            assert isinstance(outcome.exception, NotADirectoryError)
            assert "file is a file, not a folder" in str(outcome.exception)
    assert (tmp_path / "file").read_text() == "mine"


def test_killed_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    def run():
        saves = []
        mark = trainer_module.mark_complete
        monkeypatch.setattr(trainer_module, "mark_complete", lambda p: die() if saves else saves.append(mark(p)))
        pretrain(data, tmp_path)

    assert killed(run)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1"]
    assert any(is_partial(path) for path in tmp_path.iterdir())
    done(pretrain(data, tmp_path, "--resume"))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert not any(is_partial(path) for path in tmp_path.rglob("*"))


def test_full_disk_while_a_checkpoint_is_written(data, tmp_path):
    done(pretrain(data, tmp_path, "--steps", 1))
    before = held(tmp_path)

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        outcome = pretrain(data, tmp_path, "--resume")
        assert isinstance(outcome.exception, OSError), repr(outcome.exception)
        assert outcome.exception.errno in (errno.ENOSPC, errno.EFBIG)
        assert "is full" in str(outcome.exception)
        assert "\n" not in str(outcome.exception)
        die()

    assert killed(run)
    after = held(tmp_path)
    logged = {"pretraining.json", STAMP}
    assert {name: after.get(name) for name in before if name not in logged} == {
        name: content for name, content in before.items() if name not in logged
    }
    assert not any(is_partial(path) for path in tmp_path.rglob("*"))


def test_clocks_do_not_decide_which_checkpoints_go(tmp_path):
    for steps in (9, 10, 11):
        checkpoint(tmp_path / f"checkpoint-{steps}")
        os.utime(tmp_path / f"checkpoint-{steps}", (1000 - steps, 1000 - steps))
    checkpoint(tmp_path / "checkpoint-best")
    put(tmp_path, {"checkpoint-3/pytorch_model.bin": "mine", "checkpoint-12.zip": "mine"})
    rotate_checkpoints(tmp_path, tmp_path / "checkpoint-11", 2)
    left = ["checkpoint-10", "checkpoint-11", "checkpoint-12.zip", "checkpoint-3", "checkpoint-best"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    checkpoint(tmp_path / "checkpoint-4")  # gone back to
    rotate_checkpoints(tmp_path, tmp_path / "checkpoint-4", 1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_a_clock_that_went_back_costs_a_resumed_run_no_checkpoint(data, tmp_path):
    done(pretrain(data, tmp_path))
    for steps in (1, 2):
        os.utime(tmp_path / f"checkpoint-{steps}", (2**32, 2**32))  # written in the year 2106
    done(pretrain(data, tmp_path, "--steps", 4, "--resume"))
    assert {path.name for path in tmp_path.glob("checkpoint-*")} >= {"checkpoint-3", "checkpoint-4"}


def test_best_checkpoint_is_kept(tmp_path):
    best = checkpoint(tmp_path / "checkpoint-1")
    for steps in (2, 3, 4):
        checkpoint(tmp_path / f"checkpoint-{steps}")
        rotate_checkpoints(tmp_path, tmp_path / f"checkpoint-{steps}", 2, best)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]


def test_only_what_the_mark_names_is_removed(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-1", **{"inner/optimizer.pt": "x", "trainer_state.json": "{}"})
    put(folder, {"notes.txt": "mine", "trainer_state.json": "edited", "inner/mine": "x"})
    (tmp_path / "precious").write_text("mine")
    (folder / "link").symlink_to(tmp_path / "precious")
    remove_checkpoint(folder)
    assert sorted(held(folder)) == ["inner/mine", "link", "notes.txt", "trainer_state.json"]
    assert not is_complete(folder)
    elsewhere = checkpoint(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-2").symlink_to(elsewhere)
    remove_checkpoint(tmp_path / "checkpoint-2")
    assert sorted(held(elsewhere)) == [COMPLETE_FILE, "model.safetensors"]


def test_mark_that_names_files_elsewhere_is_no_mark(tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder = checkpoint(tmp_path / "checkpoint-1")
    (folder / COMPLETE_FILE).write_text(json.dumps({"files": {"../precious": 4}}))
    remove_checkpoint(folder)
    assert (tmp_path / "precious").exists()
    assert not is_complete(folder)


def test_weights_saved_by_hand_have_the_mode_of_the_rest(tmp_path):
    from tests.helpers import tiny_model

    before = os.umask(0o027)
    try:
        (tmp_path / "mine.safetensors").touch(0o600)
        tiny_model().save_pretrained(tmp_path)
        tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mine.safetensors").stat().st_mode) == 0o600
    weights = [*tmp_path.glob("model*.safetensors"), *(tmp_path / "sharded").glob("*.safetensors")]
    assert len(weights) > 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in weights} == {0o640}


def test_adapters_of_others_and_of_the_run_before(data, tmp_path):
    pytest.importorskip("peft")
    base, output = tmp_path / "base", tmp_path / "tuned"
    done(pretrain(data, base, "--steps", 1, "--save-every", 0))

    def finetune(*options):
        line = ["finetune", "retrieval", "--model", base, "--data", data / "pairs.jsonl", "--output", output]
        line += ["--epochs", 1, "--batch-size", 4, "--workers", 0, *options]
        return CliRunner().invoke(app, [str(each) for each in line])

    done(finetune("--preset", "small", "--lora", 2))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in output.rglob("*") if path.is_file()}
    assert len(modes) == 1
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    put(output, {"adapter/notes.txt": "mine"})
    blocked = finetune("--preset", "small", "--lora", 2, "--overwrite")
    assert isinstance(blocked.exception, FileExistsError)
    assert "adapter is not" in str(blocked.exception)
    done(pretrain(data, output, "--overwrite", "--steps", 1, "--save-every", 0))
    assert [path.name for path in (output / "adapter").iterdir()] == ["notes.txt"]

"""A pickle that writes a file when it is loaded, in every place where a folder of ours has one."""

import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy
import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.cli import app
from modeling_r2d2.finetuning import LoRASettings, load_adapter
from modeling_r2d2.finetuning.adapters import add_adapters, save_adapter
from modeling_r2d2.hub_cards.facts import read_training_arguments
from modeling_r2d2.inference.pickles import load_tensors, refuse_unsafe_pickles
from modeling_r2d2.integrations.checkpoints import CheckpointError, read_checkpoint
from modeling_r2d2.text_to_image.training import train_text_to_image
from modeling_r2d2.training.pretraining import pretrain
from tests.helpers import save_pairs, tiny_model, tiny_processor
from tests.text_to_image.conftest import tiny_pipeline
from tests.text_to_image.test_training import data, pairs  # noqa: F401 (fixtures)
from tests.text_to_image.test_training import settings as drawing_settings
from tests.tiny import tiny_config
from tests.training.test_trainer import Colors
from tests.training.test_trainer import processor as color_processor  # noqa: F401 (a fixture)
from tests.training.test_trainer import settings as training_settings

#: By which libraries call their pickles, and a few that nobody reads.
NAMES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "distillation.pt",
    "embeddings.npy",
    "vectors.npy",
    "model.joblib",
    "sklearn.pkl",
)


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """Must not exist after the test."""
    path = tmp_path / "the pickle ran"
    yield path
    assert not path.exists()


def plant(path: Path, mark: Path, how: str = "torch") -> None:
    if path.suffix == ".npy":
        numpy.save(path, numpy.array([Bomb(mark)], dtype=object), allow_pickle=True)
    elif how == "torch":
        torch.save({"model": torch.zeros(2), "state": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "weights_only" not in text
    assert "trust the source" not in text
    return text


def test_the_bomb_works(tmp_path):
    plant(tmp_path / "a.pt", tmp_path / "ran")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights", ["safetensors", "torch", "pickle"])
def test_no_verb_loads_a_pickle_of_a_model_folder(tmp_path, mark, weights):
    """Beside safetensors they are ignored; in their place they are refused."""
    folder, images = tmp_path / "model", tmp_path / "pictures"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    for name in NAMES:
        plant(folder / name, mark, weights)
    if weights != "safetensors":
        (folder / "model.safetensors").unlink()
    index, listed = tmp_path / "index", save_pairs(tmp_path)
    verbs = [
        f"match {images / '0.png'} 猫 --model {folder}",
        f"index {images} --output {index} --model {folder}",
        f"index {images} --output {index}",
        f"search {index} 猫",
        f"evaluate --data {listed} --model {folder} --output {tmp_path / 'report'} --resamples 0",
        f"evaluate --data {listed} --model {folder} --output {tmp_path / 'report'} --resamples 0",
        f"card {folder} --overwrite",
        f"push {folder} a/b --dry-run",
    ]
    for verb in verbs:
        done = CliRunner().invoke(app, verb.split())
        assert not mark.exists(), verb
        if weights != "safetensors" and "search" not in verb:
            assert done.exit_code, verb
            assert isinstance(done.exception, (ValueError, OSError, SystemExit)), repr(done.exception)
        for place in (index, tmp_path / "report" / "cache"):
            if place.is_dir():
                for name in NAMES:
                    plant(place / name, mark, weights)


def refused_with(checkpoint: Path, names: list[tuple[str, str]], mark: Path, resume) -> None:
    """Each file of a checkpoint in turn becomes a pickle with code."""
    for name, how in names:
        path = checkpoint / name
        before = path.read_bytes() if path.exists() else None
        plant(path, mark, how)
        with pytest.raises(ValueError, match=name) as refused:
            resume()
        one_line(refused.value)
        path.unlink() if before is None else path.write_bytes(before)


def test_resuming_pretraining(tmp_path, mark, color_processor):  # noqa: F811
    model = R2D2ForPreTraining(tiny_config("resnet"))
    pretrain(model, color_processor, Colors(), training_settings(tmp_path / "run", max_steps=2, save_steps=2))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    names = [("optimizer.pt", "torch"), ("scheduler.pt", "pickle"), ("rng_state.pth", "torch"), ("scaler.pt", "pickle")]

    def resume() -> None:
        pretrain(model, color_processor, Colors(), training_settings(tmp_path / "run", max_steps=4, resume=True))

    refused_with(checkpoint, names, mark, resume)
    (checkpoint / "model.safetensors").unlink()
    refused_with(checkpoint, [("pytorch_model.bin", "torch")], mark, resume)


def test_resuming_text_to_image(tmp_path, mark, pairs):  # noqa: F811
    changes = {"max_steps": 2, "save_steps": 2}
    train_text_to_image(tiny_pipeline(), pairs, drawing_settings(tmp_path / "run", **changes))
    checkpoint = max((tmp_path / "run").glob("checkpoint-*"))
    assert not list(checkpoint.glob("custom_checkpoint*"))
    names = ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"]

    def resume() -> None:
        train_text_to_image(tiny_pipeline(), pairs, drawing_settings(tmp_path / "run", resume=True, **changes))

    refused_with(checkpoint, [(name, "torch") for name in names], mark, resume)


def test_adapters(tmp_path, mark):
    """A pickle in place of the safetensors, another model's adapter, a damaged one."""
    adapted = add_adapters(tiny_model(), LoRASettings(rank=2))
    folder = tmp_path / "adapter"
    save_adapter(adapted, folder)
    assert load_adapter(tiny_model(), folder) is not None
    plant(folder / "adapter_model.bin", mark)
    assert load_adapter(tiny_model(), folder) is not None
    config = (folder / "adapter_config.json").read_text()
    wide = tiny_config()
    wide.text_config.intermediate_size = 128
    for other in (tiny_model("vit"), type(tiny_model())(wide)):
        with pytest.raises(ValueError, match="adapter") as refused:
            load_adapter(other, folder)
        one_line(refused.value)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:-50])
    with pytest.raises(ValueError, match="adapter"):
        load_adapter(tiny_model(), folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="no adapter"):
        load_adapter(tiny_model(), folder)
    assert "lora" in config.lower()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_official_files(tmp_path, mark, how):
    """Namespaces and numpy's numbers beside the tensors are harmless; all else is refused without bad advice."""
    path = tmp_path / "official.pth"
    harmless = {"model": {"a": torch.zeros(2)}, "args": Namespace(lr=numpy.float64(0.1)), "best": numpy.zeros(2)}
    torch.save(harmless, path)
    assert list(read_checkpoint(path)) == ["a"]
    plant(path, mark, how)
    with pytest.raises(CheckpointError, match="could run code") as refused:
        read_checkpoint(path)
    one_line(refused.value)
    done = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out")])
    one_line(done.exception)


def test_training_arguments_are_read_inert(tmp_path, mark):
    """A card reads them without any class of the file."""
    for how in ("torch", "pickle"):
        plant(tmp_path / "training_args.bin", mark, how)
        with pytest.raises(ValueError, match="no training arguments"):
            read_training_arguments(tmp_path / "training_args.bin")
    with zipfile.ZipFile(tmp_path / "training_args.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
    read_training_arguments(tmp_path / "training_args.bin")


def test_every_pickle_of_a_checkpoint_is_looked_into(tmp_path, mark):
    """In folders within it, too; `training_args.bin` is read by nothing."""
    (tmp_path / "global_step2").mkdir()
    plant(tmp_path / "training_args.bin", mark)
    refuse_unsafe_pickles(tmp_path)
    plant(tmp_path / "global_step2" / "states.pt", mark)
    with pytest.raises(ValueError, match=r"states\.pt"):
        refuse_unsafe_pickles(tmp_path)
    (tmp_path / "global_step2" / "states.pt").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(tmp_path / "global_step2" / "states.pt")

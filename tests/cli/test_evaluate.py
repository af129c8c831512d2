"""`r2d2 evaluate` and the example, end to end on tiny models."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from tests.helpers import tiny_image, tiny_model, tiny_processor

runner = CliRunner(env={"COLUMNS": "200"})
ROOT = Path(__file__).parents[2]
TEXTS = ["一只猫", "马", "两条红色的鱼", "小船", "黄鸟"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five pairs and the models `one`, `two` and `prd2`."""
    root = tmp_path_factory.mktemp("evaluate")
    lines = []
    for number, text in enumerate(TEXTS):
        tiny_image(number).save(root / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for seed, name in enumerate(("one", "two", "prd2")):
        torch.manual_seed(seed)
        tiny_model(ranker=name != "prd2").save_pretrained(root / name)
        tiny_processor().save_pretrained(root / name)
    return root


def run(folder: Path, *arguments: str, output: str = "out"):
    places = ("--data", str(folder / "pairs.jsonl"), "--output", str(folder / output), "--resamples", "20")
    return runner.invoke(app, ["evaluate", *places, *arguments])


def test_several_models_in_one_table(folder):
    models = ["--model", str(folder / "one"), str(folder / "two"), "--two-stage", "--candidates", "2", "--name", "MUGE"]
    result = run(folder, *models)
    assert result.exit_code == 0, result.output
    assert "text→image R@1, pre-ranking + ranking" in result.output
    assert "score: fused (cosine / τ + log-odds)" in result.output
    assert "pre-ranking + ranking (published score)" in result.output
    other = run(folder, *models, "--score", "published", output="other")
    assert "score: published (cosine + probability)" in other.output
    assert "pre-ranking + ranking (fused score)" in other.output
    assert "Published on MUGE, not measured here" in result.output
    rows = json.loads((folder / "out" / "retrieval-muge.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in rows] == ["one", "two"]
    assert "| | one | two |" in (folder / "out" / "retrieval-muge.md").read_text(encoding="utf-8")
    assert "kept result" in run(folder, *models).output
    assert "kept result" not in run(folder, *models, "--no-cache").output


def test_output_that_ends_in_json_is_a_file(folder):
    assert run(folder, "--model", str(folder / "one"), output="judged/one.json").exit_code == 0
    rows = json.loads((folder / "judged" / "one.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in rows] == ["one"]
    assert sorted(path.name for path in (folder / "judged").iterdir()) == ["one.json", "one.md"]
    assert run(folder, "--model", str(folder / "one"), output="judged/one.json").exit_code == 0
    (folder / "judged" / "one.json").write_text('{"mine": 1}', encoding="utf-8")
    refused = run(folder, "--model", str(folder / "one"), output="judged/one.json")
    assert isinstance(refused.exception, FileExistsError)


def test_matching_by_a_saved_list(folder):
    path = folder / "list.jsonl"
    made = runner.invoke(app, ["data", "matching-pairs", str(folder / "pairs.jsonl"), str(path)])
    assert "15 pairs, 5 of them matching" in made.output
    again = runner.invoke(app, ["data", "matching-pairs", str(folder / "pairs.jsonl"), str(path)])
    assert isinstance(again.exception, FileExistsError)
    hard = ["data", "matching-pairs", str(folder / "pairs.jsonl"), str(folder / "hard.jsonl"), "--negatives", "fgr"]
    assert "give --model" in str(runner.invoke(app, hard).exception)
    assert runner.invoke(app, [*hard, "--model", str(folder / "one")]).exit_code == 0
    about = json.loads((folder / "hard.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert about == {
        "matching_pairs": 1,
        "negatives": "fgr",
        "seed": 0,
        "data": "pairs.jsonl",
        "model": "one",
        "pairs": 15,
    }
    result = run(folder, "--task", "matching", "--pairs", str(path), "--model", str(folder / "one"))
    assert result.exit_code == 0, result.output
    assert "ROC-AUC" in result.output
    refused = run(folder, "--task", "matching", "--pairs", str(path), "--model", str(folder / "prd2"))
    assert "pre-ranking only" in str(refused.exception)


def test_classification_with_prompts_of_ones_own(folder):
    (folder / "prompts.txt").write_text("{}\n一张{}的图片\n", encoding="utf-8")
    arguments = ["--task", "classification", "--prompts", str(folder / "prompts.txt"), "--model", str(folder / "prd2")]
    result = run(folder, *arguments)
    assert result.exit_code == 0, result.output
    assert "5 pictures, 5 classes, 2 prompts" in result.output
    assert "prompts belong to" in str(run(folder, *arguments[2:]).exception)


def test_captions_of_a_file(folder):
    rows = [{"image_id": f"{number}.png", "caption": text} for number, text in enumerate(TEXTS)]
    (folder / "captions.json").write_text(json.dumps(rows), encoding="utf-8")
    result = run(folder, "--task", "captioning", "--captions", str(folder / "captions.json"))
    assert result.exit_code == 0, result.output
    (row,) = json.loads((folder / "out" / "captioning-pairs-jsonl.json").read_text(encoding="utf-8"))
    assert row["metrics"]["exact_match"] == 100
    assert row["model"] == "captions.json"


def test_no_model(folder):
    assert "no model to evaluate" in str(run(folder).exception)


def test_example(folder, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "evaluate_retrieval.py"))["main"]
    main([str(folder / "one"), str(folder / "two"), "--data", str(folder / "pairs.jsonl"), "--candidates", "2"])
    printed = capsys.readouterr().out
    assert "| | one | two |" in printed
    assert "pre-ranking + ranking" in printed

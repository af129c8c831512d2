"""The whole demo for 20 steps, and its output in a process that does not have the package."""

import json
import re

import pytest
import yaml
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from tests.test_remote_code import TEXTS, fresh_process

FILES = (
    "README.md",
    "config.json",
    "contact_sheet.png",
    "model.safetensors",
    "processor_config.json",
    "results.json",
    "tokenizer.json",
    "training_curves.png",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder and printed output of `r2d2 demo --steps 20`."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    result = CliRunner().invoke(
        app, ["demo", "--steps", "20", "--workers", "0", "--output", str(folder)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_it_writes_everything_and_says_what_to_try_next(demo):
    folder, output = demo
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert "loaded again as R2D2Model" in output
    assert "To try next" in output
    for name in ("contact_sheet.png", "training_curves.png"):
        assert min(Image.open(folder / name).size) > 300


def test_results_and_card_agree(demo):
    folder, output = demo
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(results["vendors"]) == {"twitter", "windows"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    measured = {
        (entry["dataset"]["config"], metric["name"]): metric["value"]
        for entry in header["model-index"][0]["results"]
        for metric in entry["metrics"]
    }
    for vendor, figures in results["vendors"].items():
        assert figures["images"] == figures["texts"] == 300
        both, by_score = "pre-ranking + ranking", figures["two_stage_by_score"]
        assert figures["score"] == "fused"
        stages = {"pre-ranking": figures["pre_ranking"], both: by_score["fused"]}
        stages[f"{both} (published score)"] = by_score["published"]
        for title, recalls in stages.items():
            value = recalls["text_to_image_r1"]
            assert measured[vendor, f"text→image R@1, {title}"] == pytest.approx(value, abs=0.01)
            assert f"{value:.1f}" in output
    assert "not the authors' weights" in card


def test_another_card_names_data_licenses_and_random_weights(demo, tmp_path):
    folder, _ = demo
    path = tmp_path / "card.md"
    CliRunner().invoke(app, ["card", str(folder), "--output", str(path)], catch_exceptions=False)
    card = path.read_text(encoding="utf-8")
    assert "- Base model: none: random weights (`config.json`)" in card
    (data,) = re.findall(r"^\| (emoji pictures .*?) \| (.*?) \|$", card, re.MULTILINE)
    assert "by apple, facebook, google, joypixels, samsung" in data[0]
    assert "Unicode CLDR" in data[0]
    assert "google: Apache-2.0" in data[1]
    assert "not redistributed" in data[1]
    assert "| data, counted | 1,470 pairs, 1,470 pictures, 1,470 texts |" in card
    assert "| steps made | 20 |" in card


def test_its_output_runs_without_the_package(demo, tmp_path):
    folder, _ = demo
    EmojiPairs(["twitter"]).image(150).save(folder / "picture.png")
    fresh = fresh_process(
        folder,
        """
        model = AutoModel.from_pretrained(folder, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        classify = pipeline("zero-shot-image-classification", model=str(folder), **trust)
        result = {
            "class": type(model).__name__,
            "logits": logits(model, processor),
            "labels": classify(picture, candidate_labels=LABELS, hypothesis_template="{}"),
        }
        """,
        tmp_path,
    )
    image = Image.open(folder / "picture.png")
    inputs = AutoProcessor.from_pretrained(folder)(images=[image], text=TEXTS, return_tensors="pt")
    expected = AutoModel.from_pretrained(folder)(**inputs).logits_per_image.tolist()
    assert fresh["class"] == "R2D2Model"
    assert fresh["logits"][0] == pytest.approx(expected[0], abs=1e-3)
    here = pipeline("zero-shot-image-classification", model=str(folder))
    labels = here(image, candidate_labels=["猫", "小船"], hypothesis_template="{}")
    assert [item["label"] for item in fresh["labels"]] == [item["label"] for item in labels]

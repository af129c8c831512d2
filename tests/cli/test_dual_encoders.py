"""Each verb on a dual encoder of transformers: a converted Chinese-CLIP, and the source itself; where towers matter,
the other kinds too."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model
from modeling_r2d2.app import AppModels, build_app
from modeling_r2d2.app.actions import InputError, classify, match, search_by_text
from modeling_r2d2.cli import app
from modeling_r2d2.inference.loading import load_whole
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from tests.helpers import tiny_image
from tests.integrations.conversion.dual_encoder_sources import KINDS, save

NAMES = ["一只猫", "马", "小船", "黄鸟", "两条鱼", "大山", "白花", "红车"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def run(*arguments) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.exception or result.output
    return " ".join(result.output.split())


def refused(*arguments) -> str:
    """The one line of a verb that cannot do it."""
    result = invoke(*arguments)
    assert isinstance(result.exception, ValueError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`source`, `converted`, `pairs.jsonl` of pictures in `images/`, and the same as a folder of classes."""
    root = tmp_path_factory.mktemp("verbs")
    save(root / "source", "chinese_clip")
    convert_dual_encoder_to_folder(root / "source", root / "converted")
    (root / "images").mkdir()
    lines = []
    for number, name in enumerate(NAMES):
        tiny_image(number).save(root / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"images/{number}.png", "text": name}, ensure_ascii=False))
        (root / "classes" / name).mkdir(parents=True)
        for shade in range(2):
            tiny_image(number + 100 * shade).save(root / "classes" / name / f"{shade}.png")
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=["converted", "source"])
def model(request, place):
    return place / request.param


@pytest.fixture(scope="module")
def cosines(place):
    """(pictures, texts) as the source's own class compares them."""
    own, processor = AutoModel.from_pretrained(place / "source").eval(), AutoProcessor.from_pretrained(place / "source")
    images = [tiny_image(number) for number in range(len(NAMES))]
    with torch.no_grad():
        output = own(**processor(images=images, text=NAMES, padding=True, return_tensors="pt"))
    return (output.image_embeds @ output.text_embeds.T).numpy()


def test_index_and_search(place, model, cosines, tmp_path):
    run("index", place / "images", "--model", model, "--output", tmp_path / "index")
    found = json.loads(invoke("search", tmp_path / "index", *NAMES, "--format", "json", "--top-k", "8").stdout)
    for column, entry in enumerate(found):
        assert [int(hit["id"][0]) for hit in entry["hits"]] == np.argsort(-cosines[:, column]).tolist()
        assert [hit["cosine"] for hit in entry["hits"]] == pytest.approx(sorted(cosines[:, column])[::-1], abs=1e-5)
    by_image = json.loads(
        invoke("search", tmp_path / "index", "--image", place / "images" / "3.png", "--format", "json").stdout
    )
    assert by_image[0]["hits"][0]["id"] == "3.png"
    run("index", place / "images", "--model", model, "--output", tmp_path / "index")
    kept = refused("index", place / "images", "--model", model, "--output", tmp_path / "kept", "--keep", "states")
    assert "needs a ranker" in kept or "no ranker" in kept
    page = AppModels.open(index=tmp_path / "index")
    assert build_app(page) is not None
    assert not page.can_rank
    answer = search_by_text(page, "马", top_k=3, candidates=8, minimum=0.5)
    assert len(answer.tiles) == 3


def test_evaluate(place, model, cosines, tmp_path):
    own = ("--model", model, "--resamples", "0", "--output", tmp_path / "report")
    run("evaluate", "--data", place / "pairs.jsonl", *own)
    (report,) = json.loads(next((tmp_path / "report").glob("*.json")).read_text(encoding="utf-8"))
    right = (cosines.argmax(axis=0) == np.arange(len(NAMES))).sum()
    assert report["metrics"]["pre_ranking.text_to_image_r1"] == pytest.approx(100 * right / len(NAMES))
    own = (*own[:-1], tmp_path / "classes")
    run("evaluate", "--task", "classification", "--data", place / "classes", *own)
    (report,) = json.loads(next((tmp_path / "classes").glob("*.json")).read_text(encoding="utf-8"))
    assert report["counts"]["pictures"] == 16
    for task in (("--two-stage",), ("--task", "matching"), ("--task", "captioning")):
        assert "needs a ranker" in refused("evaluate", "--data", place / "pairs.jsonl", *task, *own)


def test_match_and_calibrate_need_a_ranker(place, model):
    image = place / "images" / "0.png"
    assert "needs a ranker" in refused("match", image, *NAMES, "--model", model)
    assert "needs a ranker" in refused("calibrate", model, "--data", place / "pairs.jsonl")


def test_app(model):
    models = AppModels.open(model)
    build_app(models)
    assert not models.can_search
    assert not models.can_rank
    rows, _ = classify(models, tiny_image(0), "，".join(NAMES), "一张{}的图片")
    assert {row.text for row in rows} == set(NAMES)
    with pytest.raises(InputError, match="pre-ranking only"):
        match(models, tiny_image(0), "马")


def test_export(place, model, cosines, tmp_path):
    pytest.importorskip("onnxruntime")
    written = run("export", model, "--output", tmp_path / "graphs", "--precision", "int8")
    assert "no ranker: the model is pre-ranking only" in written
    graphs, processor = load_model(tmp_path / "graphs")
    inputs = processor(images=[tiny_image(n) for n in range(len(NAMES))], text=NAMES, return_tensors="pt")
    output = graphs(**inputs)
    assert np.abs((output.image_embeds @ output.text_embeds.T).numpy() - cosines).max() < 0.1
    run("index", place / "images", "--model", tmp_path / "graphs", "--output", tmp_path / "index")


@pytest.mark.parametrize("more", [(), ("--lora", "2"), ("--multi-positive",)])
def test_finetune(place, model, more, tmp_path):
    if "--lora" in more:
        pytest.importorskip("peft")
    own = ("--epochs", "1", "--batch-size", "4", "--workers", "0", "--output", tmp_path / "run")
    run("finetune", "retrieval", "--model", model, "--data", place / "pairs.jsonl", *own, *more)
    tuned, start = load_whole(R2D2Model, tmp_path / "run"), load_whole(R2D2Model, model)
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert {name.split(".")[0] for name in moved} >= {"text_model", "vision_projection", "temperature"}
    assert tuned.config.projection == "linear"
    run("index", place / "images", "--model", tmp_path / "run", "--output", tmp_path / "index")


def test_finetune_other_tasks(place, model, tmp_path):
    own = ("--epochs", "1", "--batch-size", "4", "--workers", "0", "--output", tmp_path / "run")
    run("finetune", "classification", "--model", model, "--data", place / "classes", *own)
    for task in ("matching", "caption"):
        own = (*own[:-1], tmp_path / task)
        assert "needs a ranker" in refused("finetune", task, "--model", model, "--data", place / "pairs.jsonl", *own)


def test_card_push_and_data(place, model, tmp_path):
    listed = tmp_path / "list.jsonl"
    run("data", "matching-pairs", place / "pairs.jsonl", listed, "--negatives", "fgr", "--model", model)
    assert listed.is_file()
    folder = tmp_path / "copy"
    shutil.copytree(place / "converted", folder)
    run("card", folder, "--overwrite", "--license", "apache-2.0")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "A `ChineseCLIPModel` of transformers" in text
    for language in ("zh", "en"):  # from each other's
        run("card", folder, "--overwrite", "--language", language)
    again = ModelCard.load(folder / "README.md")
    first = ModelCard.load(place / "converted" / "README.md")
    assert again.data.language == "zh"
    assert again.data.license_name == first.data.license_name == "of-the-source"
    origin = [line for line in first.content.splitlines() if re.match(r"\| (source|class of|digest)", line)]
    assert len(origin) == 3
    assert set(origin) <= set(again.content.splitlines())
    run("push", folder, "somebody/model", "--dry-run")
    shutil.copy(place / "converted" / "README.md", folder / "README.md")
    run("push", folder, "somebody/model", "--dry-run")


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(place, kind, tmp_path):
    """Whole weights are fine-tuned from the source itself, both towers, and the result is searched."""
    save(tmp_path / "source", kind)
    own = ("--epochs", "1", "--batch-size", "4", "--workers", "0", "--output", tmp_path / "run")
    run(
        "finetune",
        "retrieval",
        "--model",
        tmp_path / "source",
        "--data",
        place / "pairs.jsonl",
        *own,
        "--freeze-nothing",
    )
    tuned, start = load_whole(R2D2Model, tmp_path / "run"), load_whole(R2D2Model, tmp_path / "source")
    for tower in ("text_model", "vision_model"):
        weights = zip(getattr(tuned, tower).parameters(), getattr(start, tower).parameters(), strict=True)
        assert any(not torch.equal(*pair) for pair in weights)
    run("index", place / "images", "--model", tmp_path / "run", "--output", tmp_path / "index")
    found = json.loads(invoke("search", tmp_path / "index", "马", "--format", "json").stdout)
    assert len(found[0]["hits"]) == 8
    run("card", tmp_path / "run")
    assert "fine-tuned with modeling_r2d2" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    if kind == "clip":
        convert_dual_encoder_to_folder(tmp_path / "source", tmp_path / "english")
        run("card", tmp_path / "english", "--overwrite")
        card = ModelCard.load(tmp_path / "english" / "README.md")
        assert card.data.language == "en"
        assert "chinese" not in card.data.tags
        assert "Chinese" not in card.content

"""Verbs on a converted BriVL: it indexes, searches, is evaluated, classifies, exports and trains on."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline
from typer.testing import CliRunner

from modeling_r2d2 import BriVLForPreTraining, BriVLModel
from modeling_r2d2.cli import app
from modeling_r2d2.inference.loading import load_whole
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.brivl import convert_brivl_to_folder
from tests.brivl import golden
from tests.brivl.golden import GOLDEN, arrays, pairs
from tests.helpers import tiny_image

CASE = "brivl_76"
TEXTS = [each["text"] for each in pairs(CASE) if each["text"]]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def run(*arguments) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.exception or result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`model`, `pairs.jsonl` of pictures in `images/`, and a folder of classes."""
    root = tmp_path_factory.mktemp("brivl")
    case = GOLDEN / CASE
    convert_brivl_to_folder(
        case / "checkpoint.pth",
        root / "model",
        vocab=case / "vocab.txt",
        config=golden.config(CASE),
        exif_transpose=False,
    )
    (root / "images").mkdir()
    lines = []
    for number, text in enumerate(TEXTS):
        tiny_image(number).save(root / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"images/{number}.png", "text": text}, ensure_ascii=False))
    for number, name in enumerate(("山水", "人车")):
        (root / "classes" / name).mkdir(parents=True)
        tiny_image(number).save(root / "classes" / name / "0.png")
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def cosines(place):
    """(pictures, texts), each encoded by itself."""
    model, processor = AutoModel.from_pretrained(place / "model").eval(), AutoProcessor.from_pretrained(place / "model")
    with torch.no_grad():
        images = [model(**processor(images=tiny_image(n), return_tensors="pt")).image_embeds for n in range(len(TEXTS))]
        texts = [model(**processor(text=text, return_tensors="pt")).text_embeds for text in TEXTS]
    return (torch.cat(images) @ torch.cat(texts).T).numpy()


def test_index_and_search(place, cosines, tmp_path):
    run("index", place / "images", "--model", place / "model", "--output", tmp_path / "index")
    found = json.loads(invoke("search", tmp_path / "index", *TEXTS, "--format", "json", "--top-k", "9").stdout)
    for column, entry in enumerate(found):
        assert [hit["cosine"] for hit in entry["hits"]] == pytest.approx(sorted(cosines[:, column])[::-1], abs=1e-5)


def test_evaluate(place, cosines, tmp_path):
    own = ("--model", place / "model", "--resamples", "0", "--output", tmp_path / "report")
    run("evaluate", "--data", place / "pairs.jsonl", *own)
    (report,) = json.loads(next((tmp_path / "report").glob("*.json")).read_text(encoding="utf-8"))
    right = (cosines.argmax(axis=0) == np.arange(len(TEXTS))).sum()
    assert report["metrics"]["pre_ranking.text_to_image_r1"] == pytest.approx(100 * right / len(TEXTS))
    own = (*own[:-1], tmp_path / "classes")
    run("evaluate", "--task", "classification", "--data", place / "classes", *own)
    refused = invoke("evaluate", "--data", place / "pairs.jsonl", "--two-stage", *own)
    assert "needs a ranker" in str(refused.exception)


def test_classify(place):
    classify = pipeline("r2d2-zero-shot-image-classification", model=str(place / "model"))
    assert {each["label"] for each in classify(tiny_image(0), candidate_labels=["山", "水"])} == {"山", "水"}


def test_export(place, cosines, tmp_path):
    pytest.importorskip("onnxruntime")
    run("export", place / "model", "--output", tmp_path / "graphs")
    graphs, processor = load_model(tmp_path / "graphs")
    images = [tiny_image(number) for number in range(len(TEXTS))]
    output = graphs(**processor(images=images, text=TEXTS, return_tensors="pt"))
    assert np.abs((output.image_embeds @ output.text_embeds.T).numpy() - cosines).max() < 1e-4
    alone = graphs(**processor(text=TEXTS[:1], return_tensors="pt"))  # trimmed: the graph pads too
    torch.testing.assert_close(alone.text_embeds, output.text_embeds[:1], atol=1e-5, rtol=0)


def test_training_goes_on(place, tmp_path):
    """Without `--recipe` by BriVL's own, and with frozen layers; pictures as they are prepared otherwise."""
    own = ("--steps", "2", "--batch-size", "4", "--workers", "0", "--no-augment", "--output", tmp_path / "run")
    printed = run("pretrain", "--model", place / "model", "--data", place / "pairs.jsonl", "--queue-size", "4", *own)
    assert "dual-queue contrastive loss" in printed
    tuned, start = (load_whole(BriVLForPreTraining, each) for each in (tmp_path / "run", place / "model"))
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert any(name.startswith("vision_model.backbone.encoder.blocks") for name in moved)
    assert not any("embeddings" in name or "top_" in name for name in moved)
    run("card", tmp_path / "run")
    run("index", place / "images", "--model", tmp_path / "run", "--output", tmp_path / "index")


def test_sentence_transformers(place):
    pytest.importorskip("sentence_transformers")
    from modeling_r2d2.integrations.sentence_transformers import sentence_transformer

    encoder = sentence_transformer(place / "model", device="cpu")
    found = encoder.encode(list(golden.meta(CASE)["texts"]))
    np.testing.assert_allclose(found, arrays(CASE)["text_embed"].numpy(), atol=1e-5)


def test_finetune(place, tmp_path):
    own = ("--epochs", "1", "--batch-size", "4", "--workers", "0", "--output", tmp_path / "run")
    run("finetune", "retrieval", "--model", place / "model", "--data", place / "pairs.jsonl", *own)
    tuned, start = (load_whole(BriVLModel, each) for each in (tmp_path / "run", place / "model"))
    assert not torch.equal(tuned.text_projection[0].weight, start.text_projection[0].weight)
    run("card", tmp_path / "run")
    own = (*own[:-1], tmp_path / "other")
    refused = invoke("finetune", "classification", "--model", place / "model", "--data", place / "classes", *own)
    assert "fine-tuned for retrieval and matching" in str(refused.exception)
    refused = invoke("finetune", "matching", "--model", place / "model", "--data", place / "pairs.jsonl", *own)
    assert "needs a ranker" in str(refused.exception)


def test_two_stages_by_a_ranker_on_its_towers(place, tmp_path):
    """Trained on the states of its regions and tokens, which stay as they are (ours: the authors have no ranker)."""
    own = ("--steps", "2", "--batch-size", "3", "--workers", "0", "--output", tmp_path / "ranked")
    run("pretrain", "--recipe", "ranker", "--model", place / "model", "--data", place / "pairs.jsonl", *own)
    ranked, start = (load_whole(BriVLModel, each) for each in (tmp_path / "ranked", place / "model"))
    assert ranked.can_rank
    held = ranked.state_dict()
    for name, tensor in start.state_dict().items():
        assert torch.equal(held[name], tensor), name
    run("index", place / "images", "--model", tmp_path / "ranked", "--output", tmp_path / "index", "--keep", "states")
    (found,) = json.loads(invoke("search", tmp_path / "index", TEXTS[0], "--format", "json").stdout)
    assert all(0 < hit["match_probability"] < 1 for hit in found["hits"][:3])

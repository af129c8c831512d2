"""The authors' checkpoints: what becomes of every tensor, what is refused, and the folder that comes of one."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2 import BriVLConfig, BriVLForPreTraining, BriVLImageProcessor, BriVLModel, BriVLProcessor
from modeling_r2d2.cli import app
from modeling_r2d2.integrations.brivl import convert_brivl_checkpoint, convert_brivl_to_folder
from modeling_r2d2.integrations.checkpoints import CheckpointError
from tests.brivl import golden
from tests.brivl.golden import GOLDEN, arrays, pairs
from tests.helpers import tiny_image
from tests.test_remote_code import LABELS, TEXTS, fresh_process, logits

CASE = "brivl_120"
CHECKPOINT = GOLDEN / CASE / "checkpoint.pth"


@pytest.fixture
def tensors() -> dict:
    return torch.load(CHECKPOINT, weights_only=True)["learnable"]


@pytest.fixture
def convert(tmp_path):
    """Of tensors, as a file."""

    def made(tensors: dict, **options):
        torch.save({"learnable": tensors}, tmp_path / "brivl.pth")
        return convert_brivl_checkpoint(tmp_path / "brivl.pth", golden.config(CASE), **options)

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("converted") / "brivl"
    convert_brivl_to_folder(
        CHECKPOINT, place, vocab=GOLDEN / CASE / "vocab.txt", config=golden.config(CASE), exif_transpose=False
    )
    return place


@torch.no_grad()
def test_the_momentum_copies_are_a_model_too():
    """Which the authors' keys prove: after one update, m θ_k + (1 − m) θ_q."""
    student, teacher = golden.model(CASE), golden.model(CASE, momentum=True)
    recorded, momentum = arrays(CASE), golden.meta(CASE)["sizes"]["momentum"]
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.lerp_(theirs, 1 - momentum)
    rows = recorded["moco_pairs"]
    images = teacher(pixel_values=recorded["pixel_values"][rows], boxes=recorded["moco_boxes_full"]).image_embeds
    texts = teacher(recorded["input_ids"][rows], attention_mask=recorded["text_mask"][rows]).text_embeds
    torch.testing.assert_close(images, recorded["moco_image_key"], atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, recorded["moco_text_key"], atol=1e-5, rtol=0)


def test_what_became_of_every_tensor(tensors):
    _, report = convert_brivl_checkpoint(CHECKPOINT, golden.config(CASE), return_report=True)
    assert set(report.used) | set(report.unused) == set(tensors)
    assert not report.unknown
    text = str(report)
    for reason in ("momentum copy", "classifier of ImageNet", "BERT's pooler", "counts from 0"):
        assert reason in text
    assert report.used["imgencoder.learnable.imgAtt.layers.0.self_attn.in_proj_bias"].count(", ") == 2


def test_refusals(tensors, convert):
    name = "textencoder.learnable.textFC.fc1.weight"
    for change, message in (
        ({name: None}, "no tensor of the checkpoint gives text_projection.0.weight"),
        ({name: torch.zeros(3, 4)}, f"misshapen tensor: {name} is (3, 4), expected (64, 32)"),
        ({"imgencoder.learnable.max_pool.0.weight": torch.zeros(64, 64)}, "expected (64, 64, 1, 1)"),
        ({"imgencoder.backbone.bn1.num_batches_tracked": torch.zeros(())}, "misshapen tensor: imgencoder.backbone.bn1"),
        ({"imgencoder.learnable.gate": torch.zeros(2)}, "unknown tensors: imgencoder.learnable.gate"),
        ({name: torch.full((64, 32), float("nan"))}, "brivl.pth"),
    ):
        changed = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        with pytest.raises(ValueError) as caught:
            convert(changed)
        assert message in str(caught.value)
    _, report = convert(
        {**tensors, "imgencoder.learnable.gate": torch.zeros(2)}, allow_unknown=True, return_report=True
    )
    assert report.unknown == ["imgencoder.learnable.gate"]
    without = {key: value for key, value in tensors.items() if "_mom." not in key}
    convert(without)
    with pytest.raises(CheckpointError, match="no momentum copies"):
        convert(without, momentum=True)
    with pytest.raises(CheckpointError, match="brivl-b5-380.*give the configuration"):
        convert_brivl_checkpoint(CHECKPOINT)


@torch.no_grad()
def test_the_folder_loads_by_auto_classes(folder, tmp_path):
    assert isinstance(AutoConfig.from_pretrained(folder), BriVLConfig)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is BriVLProcessor
    assert type(processor.image_processor) is BriVLImageProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is BriVLImageProcessor
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is BriVLModel
    assert not any(info.values())
    example = pairs(CASE)[0]
    batch = processor(images=example["image"], text=example["text"], boxes=example["boxes"], return_tensors="pt")
    output = model(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes", "box_mask")}
    )
    torch.testing.assert_close(output.image_embeds, arrays(CASE)["image_embed"][:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.text_embeds, arrays(CASE)["text_embed"][:1], atol=1e-6, rtol=0)
    trained = BriVLForPreTraining.from_pretrained(folder)
    trained.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert held["AutoModelForPreTraining"] == "pretraining_brivl.BriVLForPreTraining"
    assert all((tmp_path / f"{reference.partition('.')[0]}.py").is_file() for reference in held.values())
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is BriVLModel
    assert not any(info.values())
    torch.testing.assert_close(again(**batch).image_embeds, output.image_embeds, atol=0, rtol=0)
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert "vision_model.backbone.encoder.top_conv.weight" in frozen
    assert "text_projection.0.weight" not in frozen


def test_the_card(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license_name == "not-stated-by-the-authors"
    assert "of the weights they state no licence" in card.text
    assert "momentum copy" in card.text


def test_command(tmp_path):
    golden.config(CASE).save_pretrained(tmp_path / "sizes")
    command = ["convert", str(CHECKPOINT), str(tmp_path / "out"), "--vocab", str(GOLDEN / CASE / "vocab.txt")]
    done = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "sizes"), "--momentum"])
    assert done.exit_code == 0, done.output
    held = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in golden.model(CASE, momentum=True).state_dict().items():
        assert torch.equal(held[name], tensor), name
    refused = CliRunner().invoke(app, [*command, "--head", "--overwrite"])
    assert "a BriVL has no MLM head" in str(refused.exception)


def test_in_a_fresh_process_without_the_package(folder, tmp_path):
    tiny_image().save(folder.parent / "picture.png")
    result = fresh_process(
        folder.parent,
        """
        model = AutoModel.from_pretrained(folder / "brivl", **trust)
        processor = AutoProcessor.from_pretrained(folder / "brivl", **trust)
        model.save_pretrained("again")
        processor.save_pretrained("again")
        second = AutoModel.from_pretrained("again", **trust)
        tokens = processor(images=[picture] * 2, text=TEXTS, boxes=[[[0, 0, 9, 9]], []], return_tensors="pt")
        classify = pipeline("zero-shot-image-classification", model="again", **trust)
        result = {
            "classes": [type(each).__name__ for each in (model, processor, processor.image_processor, second)],
            "logits": logits(model, processor),
            "again": logits(second, AutoProcessor.from_pretrained("again", **trust)),
            "boxed": model(**tokens).logits_per_image.tolist(),
            "scores": classify(picture, candidate_labels=LABELS, hypothesis_template="一张{}的图片"),
        }
        """,
        tmp_path,
    )
    assert result["classes"] == ["BriVLModel", "BriVLProcessor", "BriVLImageProcessor", "BriVLModel"]
    model, processor = BriVLModel.from_pretrained(folder), BriVLProcessor.from_pretrained(folder)
    expected = torch.tensor(logits(model, processor))
    torch.testing.assert_close(torch.tensor(result["logits"]), expected)
    torch.testing.assert_close(torch.tensor(result["again"]), expected)
    inputs = processor(images=[tiny_image()] * 2, text=TEXTS, boxes=[[[0, 0, 9, 9]], []], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(result["boxed"]), model(**inputs).logits_per_image)
    assert {score["label"] for score in result["scores"]} == set(LABELS)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {
        "AutoConfig": "configuration_brivl.BriVLConfig",
        "AutoModel": "modeling_brivl.BriVLModel",
        "AutoModelForZeroShotImageClassification": "modeling_brivl.BriVLModel",
    }

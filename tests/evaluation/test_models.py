"""Which models are evaluated, and as what: foreign dual encoders, fine-tuned classifiers, folders of classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    Siglip2Config,
    Siglip2Model,
)
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForImageClassification
from modeling_r2d2.cli import app
from modeling_r2d2.evaluation.models import load_model
from modeling_r2d2.evaluation.runner import evaluate_models
from modeling_r2d2.evaluation.settings import EvaluationSettings
from modeling_r2d2.inference.bootstrap import Bootstrap
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.integrations.conversion.dual_encoder_sources import KINDS, own_inputs
from tests.integrations.conversion.dual_encoder_sources import save as save_dual_encoder
from tests.tiny import TEXT, VIT, tiny_config
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

TOWER = {**VIT, "image_size": 32, "patch_size": 16}
WORDS = {**TEXT, "pad_token_id": 0}


def save(folder, model, processor=None):
    model.save_pretrained(folder)
    (processor or tiny_processor()).save_pretrained(folder)
    return folder


def foreign(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "siglip2":
        return Siglip2Model(Siglip2Config(text_config={**WORDS, "projection_size": 24}, vision_config=VIT))
    return BertModel(BertConfig(**WORDS))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    texts = ["猫", "两条红色的鱼在水", "船", "一张很大的马的图片"]
    for number in range(4):
        tiny_image(number).save(folder / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "text": text}) for number, text in enumerate(texts)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "pairs.jsonl"


def evaluation(data, task: str = "retrieval", **kwargs) -> EvaluationSettings:
    return EvaluationSettings(task, str(data), bootstrap=Bootstrap(0), **kwargs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("siglip2", "Siglip2Model, whose embedding of a text depends on its padding"),
        ("bert", "BertModel, which has no embeddings of images and texts"),
    ],
)
def test_foreign_models_that_would_be_judged_wrongly(kind, message, pairs, tmp_path):
    folder = save(tmp_path, foreign(kind))
    for task in ("retrieval", "classification"):
        with pytest.raises(ValueError, match=message) as caught:
            evaluate_models(evaluation(pairs, task), [folder])
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_dual_encoders_of_others(kind, pairs, tmp_path):
    """Their figures are those of the model called by itself."""
    folder = save_dual_encoder(tmp_path, kind)
    (result,) = evaluate_models(evaluation(pairs, ks=(1, 2)), [folder])
    model, processor = load_model(str(folder), evaluation(pairs))
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    images = [Image.open(pairs.parent / row["image"]) for row in rows]
    with torch.no_grad():
        output = model(**processor(images=images, text=[row["text"] for row in rows], return_tensors="pt"))
        own = AutoModel.from_pretrained(folder).eval()
        inputs = own_inputs(kind, AutoProcessor.from_pretrained(folder), images, [row["text"] for row in rows])
        if kind != "chinese_clip":
            inputs.pop("token_type_ids", None)
        theirs = own(**inputs)
    torch.testing.assert_close(output.logits_per_text, theirs.logits_per_text, rtol=0, atol=1e-5)
    best = theirs.logits_per_text.argmax(dim=1)
    assert result.metrics["pre_ranking.text_to_image_r1"] == 25.0 * (best == torch.arange(4)).sum().item()


def test_hard_negatives_are_of_our_models(pairs, tmp_path):
    """`r2d2 data matching-pairs` draws by the model's temperature, which another one has not."""
    output = tmp_path / "list.jsonl"
    given = ["data", "matching-pairs", str(pairs), str(output), "--negatives", "fgr"]
    result = CliRunner().invoke(app, [*given, "--model", str(save(tmp_path / "bert", foreign("bert")))])
    assert result.exit_code == 1
    assert "of type 'bert'" in str(result.exception)
    assert not output.exists()
    ours = save(tmp_path / "wukong", tiny_wukong("filip"), tiny_wukong_processor())
    for model in (ours, save_dual_encoder(tmp_path / "clip", "clip")):
        result = CliRunner().invoke(app, [*given, "--model", str(model)])
        assert result.exit_code == 0, result.exception
        output.unlink()


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder of classes: three colours, four pictures each."""
    root = tmp_path_factory.mktemp("classes")
    for number, name in enumerate("红黄蓝"):
        (root / name).mkdir()
        for shade in range(4):
            pixel = np.random.default_rng(number).integers(30, 220, 3) + 3 * shade
            Image.new("RGB", (40, 40), tuple(map(int, pixel))).save(root / name / f"{shade}.png")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Of the three classes in another order and one that the set lacks."""
    torch.manual_seed(0)
    names = ["白", "蓝", "红", "黄"]
    config = tiny_config(id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    model = R2D2ForImageClassification(config)
    model.classifier.weight.data.mul_(20)
    return save(tmp_path_factory.mktemp("classifier"), model)


def test_a_fine_tuned_classifier_is_judged_by_its_head(classes, classifier, tmp_path):
    zero_shot = save(tmp_path / "zero-shot", tiny_model())
    judged, other = evaluate_models(evaluation(classes, "classification"), [classifier, zero_shot], cache=tmp_path)
    model, processor = R2D2ForImageClassification.from_pretrained(classifier).eval(), tiny_processor()
    right = 0
    for path in sorted(classes.rglob("*.png")):
        with torch.no_grad():
            logits = model(**processor(images=[Image.open(path)], return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == path.parent.name
    assert right > 0
    assert judged.metrics["top1"] == pytest.approx(100 * right / 12)
    assert judged.counts == {"pictures": 12, "classes": 3, "classes of the classifier": 4}
    assert {each.task_type for each in judged.eval_results()} == {"image-classification"}
    assert {each.task_type for each in other.eval_results()} == {"zero-shot-image-classification"}
    assert evaluate_models(evaluation(classes, "classification"), [classifier], cache=tmp_path)[0].kind == judged.kind


def test_pairs_and_labels_name_the_classes(classes, classifier, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("红\t红色，红\n黄\t黄\n蓝\t蓝\n", encoding="utf-8")
    (by_folder,) = evaluate_models(evaluation(classes, "classification"), [classifier])
    (by_label,) = evaluate_models(evaluation(classes, "classification", labels=labels), [classifier])
    rows = [{"image": str(path), "text": path.parent.name} for path in sorted(classes.rglob("*.png"))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (by_pairs,) = evaluate_models(evaluation(tmp_path / "pairs.jsonl", "classification"), [classifier])
    assert by_folder.metrics == by_label.metrics == by_pairs.metrics


def test_a_class_that_the_classifier_does_not_have(classes, classifier, tmp_path):
    shutil.copytree(classes, tmp_path / "more")
    (tmp_path / "more" / "红").rename(tmp_path / "more" / "紫")
    with pytest.raises(ValueError, match="does not have the class '紫'; its 4 classes are 白, 蓝, 红, 黄"):
        evaluate_models(evaluation(tmp_path / "more", "classification"), [classifier])


def test_fine_tuned_on_a_folder_of_classes_and_judged_on_it(classes, tmp_path):
    """The two commands as a user types them."""
    base, output = save(tmp_path / "base", tiny_model(ranker=False)), tmp_path / "run"
    tune = ["finetune", "classification", "--model", str(base), "--data", str(classes), "--output", str(output)]
    result = CliRunner().invoke(app, [*tune, "--epochs", "1", "--batch-size", "4", "--workers", "0"])
    assert result.exit_code == 0, result.exception
    judge = ["evaluate", "--task", "classification", "--data", str(classes), "--model", str(output), "--resamples", "0"]
    result = CliRunner().invoke(app, [*judge, "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.exception
    (report,) = json.loads(next((tmp_path / "report").glob("*.json")).read_text(encoding="utf-8"))
    assert report["counts"]["classes of the classifier"] == 3

"""Cards of model folders: what they state is what the folder, the results and the user say, else unknown."""

import json
import re
import shutil
import zipfile

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from modeling_r2d2.hub_cards import DataSource, Speed, check_card, measure_speed, model_card, read_results, write_card
from modeling_r2d2.hub_cards.facts import ARGUMENTS, read_facts, read_training_arguments
from tests.helpers import tiny_model
from tests.hub_cards.conftest import KINDS

SPEED = Speed(10.5, 20.0, None, 16, 12, "cpu", 1, "float32", "some processor", "2.13.0")
UNKNOWN = {"en": "unknown", "zh": "未知"}


def row(card, label):
    """The second cell of a table row."""
    (value,) = re.findall(rf"^\| {re.escape(label)} \| (.*?) \|", card.text, re.MULTILINE)
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_is_valid(kind, language, folders, result_of):
    folder = folders[kind]
    bare = model_card(folder, language=language)
    full = model_card(
        folder,
        language=language,
        results=[result_of(folder)],
        data=[DataSource.parse("Zero"), DataSource.parse("owner/data=mit"), DataSource("我的数据")],
        license="apache-2.0",
        base_model="owner/base",
        speed=SPEED,
        repo="me/tiny",
        limits=["只见过猫。"],
    )
    for card in (bare, full):
        assert check_card(str(card), "model", folder) == []
        assert str(ModelCard(str(card))) == str(card)
    assert full.data.to_dict()["language"] == bare.data.to_dict()["language"] == "zh"
    assert bare.data.license == "unknown"
    assert "model-index" not in yaml.safe_load(str(bare).split("---")[1])
    assert bare.text.count(UNKNOWN[language]) >= 5
    assert "None" not in full.text
    assert "None" not in bare.text
    for text in ("research use only", "| owner/data | mit |", "只见过猫。", "12.35", "10.04–14.06", "some processor"):
        assert text in full.text, text
    assert f"| 我的数据 | {UNKNOWN[language]} |" in full.text
    assert '"me/tiny"' in full.text
    assert full.data.datasets == ["owner/data"]
    assert full.data.base_model == "owner/base"
    assert full.data.metrics == ["recall"]


def test_header_of_results(folders, result_of):
    folder = folders["prd2"]
    matching = result_of(folder, task="matching", data="ICM", metrics={"auc": 88.0, "threshold": 0.4}, intervals={})
    card = model_card(folder, results=[result_of(folder), matching])
    found = {(r.dataset_name, r.task_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("MUGE", "retrieval", "pre_ranking_text_to_image_r1"): 12.3457,
        ("MUGE", "retrieval", "two_stage_mean_recall"): 45.0,
        ("ICM", "image-text-matching", "auc"): 88.0,
        ("ICM", "image-text-matching", "threshold"): 0.4,
    }
    assert card.data.metrics == ["recall", "roc_auc"]
    assert card.data.pipeline_tag == "zero-shot-image-classification"


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ("ranked by the published score, cosine + match probability", "pre-ranking + ranking (fused score)")),
        ("zh", ("打分：作者的打分，即余弦 + 匹配概率", "预排序 + 排序（融合打分）")),
    ],
)
def test_score_of_figures(folders, result_of, language, words):
    folder = folders["pretrained"]
    metrics = {"two_stage.mean_recall": 45.0, "two_stage_fused.mean_recall": 46.0}
    settings = {"candidates": 128, "score": "published"}
    card = model_card(
        folder, language=language, results=[result_of(folder, metrics=metrics, settings=settings, intervals={})]
    )
    assert all(each in card.text for each in words)
    assert card.data.metrics == ["recall"]


@pytest.mark.parametrize(
    ("kind", "tag", "origin"),
    [
        ("pretrained", "zero-shot-image-classification", "They were pre-trained with"),
        ("finetuned", "zero-shot-image-classification", "They were fine-tuned with"),
        ("prd2", "zero-shot-image-classification", "How these weights came about is unknown"),
        ("classification", "image-classification", "How these weights came about is unknown"),
        ("captioning", "image-text-to-text", "How these weights came about is unknown"),
    ],
)
def test_task_and_origin(kind, tag, origin, folders):
    card = model_card(folders[kind])
    assert card.data.pipeline_tag == tag
    assert origin in card.text


def test_training_is_read_from_the_run(folders):
    card = model_card(folders["pretrained"])
    assert row(card, "steps") == "50"
    assert row(card, "steps made") == "40"  # of the last checkpoint
    assert row(card, "batch size per worker") == "8"
    assert row(card, "learning rate") == "0.001"
    assert row(card, "schedule") == "cosine"
    assert row(card, "seed") == "3"
    assert row(card, "losses") == "loss_fgr, loss_gcpr"
    assert row(card, "last logged loss") == "3.2199"
    tuned = model_card(folders["finetuned"], language="zh")
    assert row(tuned, "任务") == "retrieval"
    assert row(tuned, "步数") == "21"
    assert row(tuned, "学习率") == "2e-05"
    assert row(tuned, "训练的参数") == "whole weights: 1,234"
    assert row(tuned, "数据量") == "1,200 pairs, 600 pictures"
    assert row(tuned, "权重衰减") == "未知"
    unknown = model_card(folders["prd2"])
    assert [row(unknown, name) for name in ("steps", "learning rate", "seed")] == ["unknown"] * 3


def test_statistics_of_batch_norms_are_no_parameters(tmp_path):
    model = tiny_model("resnet")
    model.save_pretrained(tmp_path)
    assert any(True for _ in model.buffers())
    facts = read_facts(tmp_path)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.dtypes == ("F32",)


def test_parameters_are_counted_in_the_files(folders):
    facts = read_facts(folders["wukong"])
    tensors = load_file(folders["wukong"] / "model.safetensors")
    assert facts.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert facts.dtypes == ("F32",)
    assert facts.kind == "Wukong"
    assert not facts.can_rank
    assert read_facts(folders["matching"]).can_rank


def test_training_arguments_as_torch_reads_them(folders):
    path = folders["pretrained"] / "training_args.bin"
    expected = torch.load(path, weights_only=False)
    found = read_training_arguments(path)
    for name in ARGUMENTS:
        value = getattr(expected, name)
        assert found[name] == getattr(value, "value", value), name


def test_training_arguments_run_no_code(tmp_path):
    """A pickle that would write a file when loaded does not."""
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    path = tmp_path / "training_args.bin"
    torch.save(Evil(), path)
    assert isinstance(read_training_arguments(path), dict)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it does where code may run
    for content in (b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no training arguments"):
            read_training_arguments(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02]q\x00.")
    with pytest.raises(ValueError, match="but a list"):
        read_training_arguments(path)


def test_conversions_keep_their_origin(folders, tmp_path):
    """The card of a conversion is read back: file, digest and source survive a new card, in both languages."""
    folder = tmp_path / "converted"
    shutil.copytree(folders["prd2"], folder)
    rows = "\n".join(("| file | `r2d2.pth` |", f"| SHA-256 | `{'e' * 64}` |", "| obtained from | a friend |"))
    (folder / "README.md").write_text(f"---\n---\n| | |\n|---|---|\n{rows}\n", encoding="utf-8")
    for language in ("en", "zh", "en"):
        card = model_card(folder, language=language)
        assert "e" * 64 in card.text
        assert "r2d2.pth" in card.text
        assert "a friend" in card.text
        assert not re.search(r"\| (steps|步数) \|", card.text)
        write_card(card, folder, overwrite=True)
    assert read_facts(folder).conversion == {"file": "r2d2.pth", "sha256": "e" * 64, "source": "a friend"}


def test_results_of_other_weights_are_refused(folders, result_of):
    folder = folders["prd2"]
    with pytest.raises(ValueError, match="are of other weights"):
        model_card(folder, results=[result_of(folders["pretrained"])])
    with pytest.raises(ValueError, match="two results for retrieval on MUGE"):
        model_card(folder, results=[result_of(folder), result_of(folder)])
    assert "12.35" in model_card(folder, results=[result_of(folder, model_hash=None)]).text


def test_what_has_no_card(folders, tmp_path):
    with pytest.raises(ValueError, match="'fr'"):
        model_card(folders["prd2"], language="fr")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        model_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="BertModel"):
        model_card(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="diffusers"):
        model_card(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(folders["prd2"] / "config.json", empty)
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        model_card(empty)
    with pytest.raises(ValueError, match="no name of the Hub"):
        model_card(folders["prd2"], base_model="../mine")


def test_writing(folders, result_of, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(folders["prd2"], folder)
    result = result_of(folder)
    card = model_card(folder, results=[result])
    written = write_card(card, folder, [result])
    assert [path.relative_to(folder).as_posix() for path in written] == [
        "README.md",
        "evaluation/retrieval-muge.json",
        "evaluation/retrieval-muge.md",
    ]
    assert read_results(written[1]) == [result]
    assert model_card(folder, results=read_results(written[1])).content == card.content  # still the same weights
    with pytest.raises(FileExistsError, match="overwrite"):
        write_card(card, folder)


def test_reading_results(tmp_path):
    path = tmp_path / "results.json"
    recalls = {"text_to_image_r1": 60.0}
    vendor = {"images": 300, "texts": 300, "candidates": 32, "pre_ranking": recalls, "two_stage": None}
    path.write_text(json.dumps({"vendors": {"twitter": vendor}}))
    (result,) = read_results(path)
    assert (result.data, result.metrics) == ("emoji:twitter", {"pre_ranking.text_to_image_r1": 60.0})
    by_score = {"fused": {"text_to_image_r1": 64.0}, "published": {"text_to_image_r1": 63.0}}
    vendor |= {"two_stage": by_score["fused"], "two_stage_by_score": by_score, "score": "fused"}
    path.write_text(json.dumps({"vendors": {"twitter": vendor}}))
    (result,) = read_results(path)
    assert list(result.metrics.values()) == [60.0, 64.0, 63.0]
    assert list(result.metrics)[1:] == ["two_stage.text_to_image_r1", "two_stage_published.text_to_image_r1"]
    assert result.settings == {"candidates": 32, "score": "fused"}
    for held in ({"a": 1}, [1]):
        path.write_text(json.dumps(held))
        with pytest.raises(ValueError, match="holds no results"):
            read_results(path)


def test_speed_is_measured(folders):
    for kind in ("pretrained", "prd2", "wukong"):
        speed = measure_speed(folders[kind], batch=2, seconds=0.01)
        assert min(speed.images_per_second, speed.texts_per_second) > 0
        assert (speed.pairs_per_second is not None) == (kind == "pretrained")
        assert Speed(**json.loads(json.dumps(speed.to_dict()))) == speed
    with pytest.raises(ValueError, match="R2D2ForConditionalGeneration"):
        measure_speed(folders["captioning"])

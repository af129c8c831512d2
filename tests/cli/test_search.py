"""`r2d2 index`, `search`, `match` and `calibrate`, end to end."""

import csv
import io
import json
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForImageClassification
from modeling_r2d2.cli import app, main
from modeling_r2d2.inference.calibrating import load_gallery
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.tiny import tiny_config

pytest.importorskip("faiss")  # of the extra [retrieval]

runner = CliRunner()
NAMES = ["一只猫", "马", "小船 a", "黄鸟"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, four pictures with captions, one that is broken, and their index."""
    root = tmp_path_factory.mktemp("search")
    torch.manual_seed(0)
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    (root / "pictures").mkdir()
    lines = []
    for seed, name in enumerate(NAMES):
        tiny_image(seed).save(root / "pictures" / f"{name}.png")
        lines.append(json.dumps({"image": f"{name}.png", "text": name}, ensure_ascii=False))
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (root / "pictures" / "broken.png").write_bytes(b"GIF89a")
    result = run("index", root / "pictures", "--model", root / "model", "--output", root / "index", "--keep", "states")
    assert "4 pictures (4 added)" in result.replace("\n", "")
    assert "broken.png" in result
    return root


def run(*arguments):
    result = runner.invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_formats_agree(place):
    command = ("search", place / "index", "一只猫", "马", "--top-k", "2", "--candidates", "3")
    found = json.loads(run(*command, "--format", "json"))
    assert [entry["query"] for entry in found] == ["一只猫", "马"]
    rows = list(csv.DictReader(io.StringIO(run(*command, "--format", "csv"))))
    assert [row["id"] for row in rows] == [hit["id"] for entry in found for hit in entry["hits"]]
    table = run(*command)
    assert all(f"{hit['score']:.3f}" in table for entry in found for hit in entry["hits"])
    published = json.loads(run(*command, "--format", "json", "--score", "published"))
    for hit in (hit for entry in published for hit in entry["hits"]):
        assert hit["score"] == pytest.approx(hit["match_probability"] + hit["cosine"], abs=1e-5)
    run(*command, "--format", "sheet", "--output", place / "sheet.png")
    assert Image.open(place / "sheet.png").format == "PNG"
    assert (place / "sheet.html").is_file()
    run(*command, "--format", "json", "--output", place / "found.json")
    assert json.loads((place / "found.json").read_text("utf-8")) == found


def test_by_image_and_captions(place):
    image = place / "pictures" / "马.png"
    found = json.loads(run("search", place / "index", "--image", image, "--format", "json"))
    assert found[0]["hits"][0]["id"] == "马.png"
    found = json.loads(run("search", place / "index", "--image", image, "--find", "texts", "--format", "json"))
    assert {hit["text"] for hit in found[0]["hits"]} == set(NAMES)


def test_add_remove_prune(place, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for seed in (7, 8):
        tiny_image(seed).save(folder / f"{seed}.png")
    index = ("--output", tmp_path / "index")
    run("index", folder, *index, "--model", place / "model", "--vectors", "hnsw")
    tiny_image(9).save(folder / "9.png")
    (folder / "7.png").unlink()
    assert "3 pictures (1 added, 1 unchanged)" in run("index", folder, *index)  # removed only if that is asked for
    assert "1 removed" in run("index", folder, *index, "--prune")
    assert "1 pictures (1 removed)" in run("index", *index, "--remove", "9.png")
    assert "2 pictures (1 added, 1 unchanged)" in run("index", folder, *index)
    assert "2 pictures (1 added, 1 removed, 1 unchanged)" in run("index", folder, *index, "--remove", "8.png")


def test_match_and_heat_map(place, tmp_path):
    image = place / "pictures" / "马.png"
    command = ("match", image, "一只猫", "马", "--model", place / "model")
    rows = json.loads(run(*command, "--json"))
    assert {row["text"] for row in rows} == {"一只猫", "马"}
    assert rows[0]["match_probability"] >= rows[1]["match_probability"]
    assert f"{rows[0]['match_probability']:.4f}" in run(*command)
    run(*command, "--word", "猫", "--heat-map", tmp_path / "map.png")
    assert Image.open(tmp_path / "map.png").size == Image.open(image).size


def test_data_of_a_calibration(tmp_path):
    """A broken picture is left out, and counted; a stream, labelled pairs and what is not there are refused."""
    rows = [{"image": f"{n}.png", "text": text, "match": n % 2} for n, text in enumerate("猫狗马鱼")]
    for n in range(4):
        tiny_image(n).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "pairs.data").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    gallery = load_gallery(tmp_path / "pairs.data", format="jsonl", max_error_rate=0.5)
    assert list(gallery.texts) == ["猫", "马", "鱼"]
    assert [image.size for image in gallery.images] == [tiny_image(0).size] * 3
    with pytest.raises(ValueError, match="a stream of shards"):
        load_gallery(tmp_path / "pairs.data", format="jsonl", streaming=True)
    with pytest.raises(ValueError, match="labelled pairs"):
        load_gallery(tmp_path / "pairs.data", format="jsonl", columns={"label": "match"})


def test_calibrate(place, tmp_path):
    """The fit is stored with the model, and search and match use it."""
    folder, data = tmp_path / "model", tmp_path / "pairs"
    torch.manual_seed(0)
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    data.mkdir()
    texts = ["猫", "狗", "马", "鱼", "鸟", "车", "船", "山", "水", "火", "木", "天"]
    lines = []
    for seed, text in enumerate(texts):
        tiny_image(seed).save(data / f"{seed}.png")
        lines.append(json.dumps({"image": f"{seed}.png", "text": text}, ensure_ascii=False))
    (data / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    image = place / "pictures" / "马.png"
    before = json.loads(run("match", image, "马", "--model", folder, "--json"))
    command = ("calibrate", folder, "--data", data / "pairs.jsonl", "--prior", "0.01", "--method", "platt")
    command += ("--per-positive", "4")
    result = runner.invoke(app, [str(each) for each in (*command, "--recall", "0.5", "--plot", tmp_path / "r.png")])
    if isinstance(result.exception, ValueError):  # random weights may rank these twelve the wrong way round
        assert "order round" in str(result.exception)
        pytest.fail("choose other pictures: this model's probability must say something for the test")
    assert result.exit_code == 0, result.output
    assert "60 pairs, 20.0% of them true, prior 1.0%" in result.output.replace("\n", " ")
    assert "expected calibration error after" in result.output
    assert (tmp_path / "r.png").is_file()
    after = json.loads(run("match", image, "马", "--model", folder, "--json"))
    stored = json.loads((folder / "calibration.json").read_text())
    p = torch.tensor(before[0]["match_probability"], dtype=torch.float64)
    odds = torch.logit(torch.tensor(0.01).double()) - torch.logit(torch.tensor(0.2).double())
    wanted = torch.sigmoid(stored["slope"] * torch.logit(p) + stored["intercept"] + odds)
    assert after[0]["match_probability"] == pytest.approx(float(wanted), abs=1e-5)
    assert "calibrated" in run("match", image, "马", "--model", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{root}/nowhere", "一只猫"], "no such folder"),
        (["search", "{root}/index", "  "], "only spaces"),
        (["search", "{root}/index", "猫", "--format", "sheet"], "--output"),
        (["search", "{root}/index", "猫", "--model", "{root}/other"], "another model"),
        (["index", "{root}/pictures", "--output", "{root}/new"], "--model"),
        (["index", "--output", "{root}/index"], "--remove"),
        (["index", "--output", "{root}/index", "--remove", "没有"], "没有"),
        (["match", "{root}/pictures/broken.png", "猫", "--model", "{root}/model"], "broken.png"),
    ],
)
def test_errors_are_one_line(place, arguments, message, monkeypatch, capsys):
    if not (place / "other").is_dir():
        torch.manual_seed(9)
        tiny_model().save_pretrained(place / "other")
        tiny_processor().save_pretrained(place / "other")
    monkeypatch.setattr(sys, "argv", ["r2d2", *(each.format(root=place) for each in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_words_that_the_model_does_not_know_are_named(place):
    for command in (
        ("match", place / "pictures" / "马.png", "马", "xylophone"),
        ("search", place / "index", "xylophone"),
    ):
        model = ("--model", place / "model")
        result = runner.invoke(app, [str(part) for part in (*command, *model)], catch_exceptions=False)
        assert "not in the model's vocabulary, read as [UNK]: " in result.stderr
    known = runner.invoke(app, ["search", str(place / "index"), "马", "--model", str(place / "model")])
    assert "vocabulary" not in known.stderr


def test_a_model_that_lacks_weights_is_refused(place, tmp_path):
    """A classifier has no text tower and no ranker: they would be random."""
    config = tiny_config(num_labels=2)
    R2D2ForImageClassification(config).save_pretrained(tmp_path / "classes")
    tiny_processor().save_pretrained(tmp_path / "classes")
    folder = str(tmp_path / "classes")
    pairs = str(place / "pictures" / "metadata.jsonl")
    for command in (
        ("match", str(place / "pictures" / "马.png"), "马", "--model", folder),
        ("index", str(place / "pictures"), "--model", folder, "--output", str(tmp_path / "index")),
        ("evaluate", "--data", pairs, "--model", folder),
        ("pretrain", "--data", pairs, "--model", folder, "--output", str(tmp_path / "run"), "--steps", "1"),
    ):
        result = runner.invoke(app, command)
        assert "it holds a model of another kind" in str(result.exception), command
    missing = runner.invoke(app, ("evaluate", "--data", pairs, "--model", "runs/nothing"))
    assert "no such folder: runs/nothing" in str(missing.exception)


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("pairs.csv", "image,text\na.png,猫\n"),
        ("list.json", '[{"image": "a.png", "text": "猫"}]'),
        ("notes.txt", "我的笔记\n第二行\n"),
        ("list.csv", "图片,标题\r\na.png,猫\r\n".encode("gbk")),
    ],
)
def test_hits_replace_hits_and_nothing_else(place, tmp_path, name, mine):
    output = tmp_path / name
    mine = mine if isinstance(mine, bytes) else mine.encode()
    output.write_bytes(mine)
    command = ("search", place / "index", "猫", "--output", output)
    with pytest.raises(FileExistsError, match="holds no hits of a search: name another file"):
        run(*command)
    assert output.read_bytes() == mine
    output.unlink()
    for more in ((), ("--top-k", 1), ("--min-match-probability", 1.0), ()):  # its own hits, then, many or none
        run(*command, *more)

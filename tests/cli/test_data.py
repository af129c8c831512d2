"""`r2d2 data check`: counts, broken rows by file and line, duplicates, sizes, the contact sheet."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.figures.pair_sheet import pair_sheet
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.check import Spread, check_pairs
from tests.helpers import tiny_image

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def data(tmp_path):
    """Four good pairs of three pictures, one of them with two captions; four bad lines."""
    for number in range(3):
        tiny_image(number, 20 + 10 * number, 30).save(tmp_path / f"{number}.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "0.png").read_bytes()[:90])
    rows = [
        {"image": "0.png", "text": ["一只猫", "猫"]},
        {"image": "1.png", "text": "猫"},
        {"image": "2.png", "text": "小小的船"},
        {"image": "0.png", "text": "猫"},
        {"image": "missing.png", "text": "没有"},
        {"image": "half.png", "text": "半张"},
        {"image": "1.png", "text": " "},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, "?"]), encoding="utf-8")
    return tmp_path


def test_figures(data):
    found = check_pairs(load_pairs(data / "pairs.jsonl", max_error_rate=1.0, check_images="exists"))
    assert (found.records, found.pairs, found.images, found.texts, found.errors) == (8, 4, 3, 5, 4)
    assert sorted(problem.line for problem in found.problems) == [5, 6, 7, 8]
    assert found.error_rate == 0.5
    assert found.duplicates == {"猫": 2}
    assert (found.widths.least, found.widths.median, found.widths.most) == (20, 30, 40)
    assert found.heights == Spread.of([30, 30, 30])
    assert found.area.most == pytest.approx(0.0012)
    assert found.characters == Spread.of([3, 1, 1, 4, 1])
    assert found.texts_per_image == Spread.of([3, 1, 1])
    assert {text for _, text in found.sample} == {"一只猫", "猫", "小小的船"}
    assert json.loads(json.dumps(found.to_dict()))["widths"]["mean"] == 30
    assert Spread.of([]) is None


def test_command(data):
    sheet, report = data / "out" / "sheet.png", data / "out" / "report.json"
    command = ["data", "check", str(data / "pairs.jsonl"), "--sheet", str(sheet), "--report", str(report)]
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert "50.00% of the records are bad, more than 1.00%" in result.output
    assert "2 × 猫" in result.output
    for line, reason in ((5, "no such picture"), (6, "cannot be decoded"), (7, "empty caption"), (8, "not JSON")):
        assert any(f"pairs.jsonl:{line}:" in printed and reason in printed for printed in result.output.splitlines())
    assert json.loads(report.read_text(encoding="utf-8"))["errors"] == 4
    assert Image.open(sheet).width > 300
    tolerant = runner.invoke(app, [*command, "--max-error-rate", "0.5", "--list-errors", "1"])
    assert tolerant.exit_code == 0
    assert "and 3 more bad records" in tolerant.output


def test_what_is_worth_a_look(tmp_path):
    """The same picture in two files of two formats, pairs twice, endless and invisible captions: by file and line."""
    tiny_image(0).save(tmp_path / "a.png")
    tiny_image(0).save(tmp_path / "b.bmp")
    tiny_image(1).save(tmp_path / "c.png")
    texts = [
        "一只猫",
        "一只猫",
        "长" * 10_000,
        "两\u200b只",
        "红\x07色",
        "\u202e黄",
        "\ufeff蓝",
        "👩\u200d🚀",
        "第一行\n第二行",
    ]
    rows = [{"image": "c.png", "text": text} for text in texts[2:]]
    rows = [{"image": "a.png", "text": texts[0]}, {"image": "b.bmp", "text": texts[1]}, *rows]
    rows.append({"image": "c.png", "text": "\u200b\ufeff"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = check_pairs(load_pairs(path, max_error_rate=1.0, check_images="exists"))
    assert (found.same_images, found.same_pairs, found.long_texts, found.odd_texts) == (1, 1, 1, 4)
    assert set(found.odd_characters) == {
        "U+200B ZERO WIDTH SPACE",
        "U+0007",
        "U+202E RIGHT-TO-LEFT OVERRIDE",
        "U+FEFF ZERO WIDTH NO-BREAK SPACE",
    }
    assert [problem.reason for problem in found.problems] == ["empty caption"]
    assert json.loads(json.dumps(found.to_dict()))["same_pairs"] == 1
    result = runner.invoke(app, ["data", "check", str(path), "--max-error-rate", "1"])
    assert result.exit_code == 0
    assert f"pairs.jsonl:2: b.bmp has the same pixels as a.png ({path}:1)" in result.output
    assert "pairs.jsonl:3: a caption of 10,000 characters" in result.output
    assert "pairs.jsonl:4: holds U+200B ZERO WIDTH SPACE: 两·只" in result.output
    assert not set("\u200b\u202e\x07") & set(result.output)


def test_one_pair_with_two_labels(tmp_path):
    tiny_image(0).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "text": "猫", "match": label} for label in (1, 0, 1)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = check_pairs(load_pairs(tmp_path / "pairs.jsonl", columns={"label": "match"}))
    assert (found.same_images, found.same_pairs, found.contradictions) == (0, 2, 1)


def test_labelled_pairs(data):
    rows = [{"text": "猫", "image_path": f"x/{n}.png", "label": n % 2} for n in range(3)]
    (data / "long_itm_val.json").write_text("\n".join(map(json.dumps, rows)))
    pairs = load_pairs(data / "long_itm_val.json", format="icm")
    found = check_pairs(pairs)
    assert found.labels == {0: 2, 1: 1}
    assert found.duplicates == {}, "a caption of pairs that do not match is no duplicate"
    result = runner.invoke(app, ["data", "check", str(data / "long_itm_val.json"), "--format", "icm"])
    assert "labelled 1" in result.output


def test_shards(data):
    with tarfile.open(data / "0.tar", "w") as archive:
        for name, content in (("0.png", None), ("0.txt", b"a"), ("1.png", None), ("1.txt", b""), ("2.txt", b"x")):
            content = (data / name).read_bytes() if content is None else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = check_pairs(load_pairs(data / "0.tar", max_error_rate=1.0))
    assert (found.records, found.pairs, found.errors) == (3, 1, 2)


def test_sample_is_drawn_evenly(data):
    rows = [json.dumps({"image": f"{n % 3}.png", "text": f"第{n}句"}, ensure_ascii=False) for n in range(40)]
    (data / "many.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pairs = load_pairs(data / "many.jsonl")
    counts = np.zeros(40)
    for seed in range(30):
        for _, text in check_pairs(pairs, sample=4, seed=seed).sample:
            counts[int(text[1:-1])] += 1
    assert counts.sum() == 120
    assert counts[:20].sum() == pytest.approx(60, abs=20)


def test_sheet_shows_every_image():
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    pairs = [(Image.new("RGB", (90, 60), color), "一句很长很长很长很长很长很长很长很长的话") for color in colors]
    sheet = pair_sheet(pairs, title="标题", columns=2)
    seen = {tuple(pixel) for pixel in np.asarray(sheet).reshape(-1, 3)[::7]}
    assert seen.issuperset(colors)
    with pytest.raises(ValueError, match="at least one picture"):
        pair_sheet([])


def test_what_is_bad_is_named_once(data):
    """Not at loading already, on stderr, and a second time in the answer."""
    (data / "folder").mkdir()
    for name in ("0.svg", "1.png"):
        (data / "folder" / name).write_bytes((data / "1.png").read_bytes())
    (data / "folder" / "1.txt").write_text("猫")
    for place, words in (("pairs.jsonl", "missing.png"), ("folder", "1 .svg")):
        result = runner.invoke(app, ["data", "check", str(data / place)])
        assert (result.output.count(words), result.stdout.count(words)) == (1, 1)

"""Files that commands write: nothing that is read, and nothing of somebody else's, is ever replaced."""

import json
import os
import shutil
import stat

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.figures.drawings import refuse_foreign_drawing, save_drawing
from tests.helpers import tiny_image, tiny_model, tiny_processor


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def done(outcome):
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A model, pictures with captions, and an index of them."""
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("outputs")
    torch.manual_seed(0)  # a ranker that can be calibrated
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    (folder / "photos").mkdir()
    lines = []
    for number, text in enumerate(["一只猫", "一只狗", "红马", "小鱼", "山水", "花草"]):
        tiny_image(number).save(folder / "photos" / f"{number}.png")
        lines.append(json.dumps({"image": f"photos/{number}.png", "text": text, "image_id": str(number)}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    done(run("index", folder / "photos", "--output", folder / "index", "--model", folder / "model"))
    return folder


@pytest.fixture
def made(made_once, tmp_path_factory):
    """Each test's own: what one replaces misleads no other."""
    return shutil.copytree(made_once, tmp_path_factory.mktemp("outputs") / "made")


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


COMMANDS = {
    "search over its query": "search index --image photos/0.png --output photos/0.png",
    "search over the index": "search index 猫 --format json --output index/manifest.json",
    "sheet over a photograph": "search index 猫 --output photos/1.png",
    "sheet beside a page": "search index 猫 --output mine.png",
    "page beside a photograph": "search index 猫 --output photos/2.html",
    "heat map over its picture": "match photos/0.png 猫 --model model --heat-map photos/0.png",
    "report over the data": "data check pairs.jsonl --report pairs.jsonl",
    "report among the data": "data check pair*.jsonl --report pairs.jsonl",
    "sheet over a picture of the data": "data check pairs.jsonl --sheet photos/3.png",
    "list over the data": "data matching-pairs pairs.jsonl pairs.jsonl --overwrite",
    "plot over a photograph": "calibrate model --data pairs.jsonl --plot photos/4.png",
    "evaluation over somebody's notes": "evaluate --task retrieval --data pairs.jsonl --name mine --model model "
    "--output reports --resamples 0",
    "evaluation into a file": "evaluate --task retrieval --data pairs.jsonl --model model --output mine.html",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_nothing_that_is_read_or_somebodys_is_replaced(made, monkeypatch, command):
    monkeypatch.chdir(made)
    (made / "mine.html").write_text("<html>mine")
    (made / "reports").mkdir(exist_ok=True)
    (made / "reports" / "retrieval-mine.md").write_text("# mine")
    before = bytes_of(made)
    outcome = run(*command.split())
    assert isinstance(outcome.exception, (FileExistsError, NotADirectoryError)), (outcome.output, outcome.exception)
    after = bytes_of(made)
    assert {name: after.get(name) for name in before} == before


def test_what_commands_wrote_before_they_write_again(made, tmp_path):
    before = os.umask(0o022)
    try:
        for _ in range(2):
            done(run("search", made / "index", "猫", "--output", tmp_path / "hits.json"))
            done(run("search", made / "index", "猫", "--output", tmp_path / "hits.html"))
            heat = ["--heat-map", tmp_path / "heat.png"]
            done(run("match", made / "photos" / "0.png", "猫", "--model", made / "model", *heat))
            report = ["--report", tmp_path / "report.json", "--sheet", tmp_path / "sheet.png"]
            done(run("data", "check", made / "pairs.jsonl", *report))
            evaluation = ["--data", made / "pairs.jsonl", "--model", made / "model", "--resamples", 0]
            done(run("evaluate", *evaluation, "--output", tmp_path / "reports"))
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o644}


def test_plot_is_there_although_the_threshold_cannot_be(made, tmp_path, monkeypatch):
    from modeling_r2d2.inference import calibration

    def none(*_):
        raise ValueError("no threshold")

    monkeypatch.setattr(calibration, "threshold_for", none)
    line = ["calibrate", made / "model", "--data", made / "pairs.jsonl", "--plot", tmp_path / "plot.png"]
    line += ["--per-positive", 2]
    outcome = run(*line, "--precision", 1.0)
    assert "no threshold" in str(outcome.exception), (outcome.output, outcome.exception)
    assert (tmp_path / "plot.png").is_file()
    stored = made / "model" / "calibration.json"
    assert stored.is_file()
    stored.write_text("mine")
    outcome = run(*line)
    assert isinstance(outcome.exception, FileExistsError)
    assert stored.read_text() == "mine"
    stored.unlink()


def test_drawings_are_known_by_their_mark(tmp_path):
    ours, theirs = tmp_path / "deep" / "ours.png", tmp_path / "theirs.png"
    image = Image.new("RGB", (4, 4))
    save_drawing(image, ours)
    save_drawing(image, ours)
    image.save(theirs)
    before = theirs.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(theirs)
    for path in (theirs, link):
        with pytest.raises(FileExistsError, match="was not drawn by this program"):
            save_drawing(image, path)
    with pytest.raises(IsADirectoryError):
        refuse_foreign_drawing(tmp_path)
    assert theirs.read_bytes() == before

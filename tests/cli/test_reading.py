"""Whatever reads a person's files takes their names of columns and their encoding, and says what it ignored."""

import click
import pytest
import torch
import typer
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from tests.helpers import tiny_image, tiny_model, tiny_processor

runner = CliRunner(env={"COLUMNS": "200"})
READS = ["pretrain", "finetune", "evaluate", "calibrate", "index", "data card", "data check", "data matching-pairs"]


@pytest.mark.parametrize("verb", READS)
def test_every_verb_that_reads_files_has_the_options(verb):
    command: click.Command = typer.main.get_command(app)
    for name in verb.split():
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--image-column", "--text-column", "--encoding"} <= options


@pytest.fixture
def table(tmp_path):
    """Three pairs as a Chinese spreadsheet saves them: GBK, columns of its own, paths of Windows."""
    (tmp_path / "图").mkdir()
    rows = ["编号,照片,商品名,备注"]
    for number, text in enumerate(["一只小狗", "红色的杯子", "山上的雪"]):
        tiny_image(number).save(tmp_path / "图" / f"{number}.png")
        rows.append(f"{number},图\\{number}.png,{text},好")
    (tmp_path / "表.csv").write_bytes("\r\n".join(rows).encode("gbk"))
    return tmp_path / "表.csv"


def test_data_check(table):
    result = runner.invoke(app, ["data", "check", str(table)])
    assert isinstance(result.exception, ValueError)
    assert "--text-column" in str(result.exception)
    for more in ([], ["--encoding", "gbk"]):
        result = runner.invoke(app, ["data", "check", str(table), "--text-column", "商品名", *more])
        assert result.exit_code == 0, result.output
        assert "column '照片' is taken for the image" in result.output
        assert ("read as GB18030" in result.output) == (not more)


def test_index_of_several_sources(table, tmp_path):
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    for number, folder in enumerate(("a/photos", "b/photos")):
        (tmp_path / folder).mkdir(parents=True)
        tiny_image(9 + number).save(tmp_path / folder / "1.png")
        (tmp_path / folder / "1.svg").write_text("<svg/>")
    sources = [str(tmp_path / "a/photos"), str(tmp_path / "b/photos"), str(table)]
    command = ["index", *sources, "--output", str(tmp_path / "index"), "--model", str(tmp_path / "model")]
    result = runner.invoke(app, [*command, "--text-column", "商品名"], catch_exceptions=False)
    assert "5 pictures (5 added)" in result.output.replace("\n", "")
    assert "ignored: 2 .svg" in result.output
    found = runner.invoke(app, ["search", str(tmp_path / "index"), "狗", "--find", "images", "--format", "json"])
    assert '"a/photos/1.png"' in found.output
    assert '"图/2.png"' in found.output

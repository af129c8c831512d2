"""`--max-pixels`: for every verb that reads pictures, and for that call alone."""

import inspect

import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.cli.commands import _reading_pixels
from modeling_r2d2.cli.data import CheckSettings
from modeling_r2d2.processing.files.images import ImageReadError, check_image, open_image
from tests.helpers import tiny_image

VERBS = ("index", "search", "match", "pretrain", "finetune", "evaluate", "calibrate", "export")


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_read_images_have_the_option(verb):
    command = next(each.callback for each in app.registered_commands if each.name == verb)
    assert "max_pixels" in inspect.signature(command).parameters
    assert "max_pixels" in inspect.signature(CheckSettings).parameters


def test_the_limit_holds_for_the_call(tmp_path):
    for number in range(4):
        tiny_image(number, width=50, height=40).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("一只猫", encoding="utf-8")
    runner, before = CliRunner(), Image.MAX_IMAGE_PIXELS
    refused = runner.invoke(app, ["data", "check", str(tmp_path), "--max-pixels", "1500"])
    assert "50 x 40 pixels are over the limit of 1500" in " ".join(f"{refused.output} {refused.exception}".split())
    assert before == Image.MAX_IMAGE_PIXELS
    assert runner.invoke(app, ["data", "check", str(tmp_path), "--max-pixels", "2000"]).exit_code == 0


def test_photographs_of_108_megapixels_are_read_and_more_on_request(tmp_path):
    usual, large = tmp_path / "108.png", tmp_path / "200.png"
    Image.new("1", (12_032, 9_024)).save(usual)
    Image.new("1", (16_320, 12_240)).save(large)
    check_image(usual)
    with pytest.raises(ImageReadError, match=r"--max-pixels|decompression bomb"):
        check_image(large)
    with _reading_pixels(200_000_000):
        check_image(large)
    assert open_image(usual).size == (12_032, 9_024)

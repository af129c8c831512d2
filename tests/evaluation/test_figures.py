"""The contact sheet and the training curves."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from modeling_r2d2.figures import Hit, Query, best_hits, contact_sheet, fonts, training_curves
from modeling_r2d2.figures.cells import _wrap
from tests.helpers import tiny_image

GREEN = (0x1A, 0x98, 0x50)


@pytest.fixture
def no_font(monkeypatch):
    monkeypatch.setattr(fonts, "_candidates", lambda: iter(()))
    fonts.find_chinese_font.cache_clear()
    yield
    fonts.find_chinese_font.cache_clear()


def text_queries(correct: bool = True) -> list[Query]:
    hits = [Hit(tiny_image(n), 0.9 - n / 10, correct and n == 1) for n in range(3)]
    return [
        Query("一只猫", {"pre-ranking": hits, "two stages": hits[:2]}),
        Query("狗", {"pre-ranking": [], "two stages": hits}),
    ]


def count(image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == color).all(axis=2).sum())


def test_right_hits_are_framed_green(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    sheet = contact_sheet(text_queries(), path, title="检索", subtitle="text → image")
    assert Image.open(path).size == sheet.size
    assert count(sheet, GREEN) > 1000
    assert count(contact_sheet(text_queries(correct=False)), GREEN) == 0


def test_images_as_queries_texts_as_hits_and_files(tmp_path):
    path = tmp_path / "query.png"
    Image.new("RGBA", (300, 20), (255, 0, 0, 128)).save(path)
    hits = [Hit("一只很长很长的句子" * 9, -0.25, True), Hit("", 0.0, False), Hit("word " * 40, 1, False)]
    sheet = contact_sheet([Query(path, {"way": hits})], scale=1)
    assert count(sheet, GREEN) > 100


def test_scale_multiplies_pixels():
    small, large = (contact_sheet(text_queries(), scale=scale).size for scale in (1, 3))
    assert large == (3 * small[0], 3 * small[1])


def test_sheets_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="at least one query"):
        contact_sheet([])
    with pytest.raises(ValueError, match="same ways"):
        contact_sheet([Query("猫", {"a": []}), Query("猫", {"b": []})])


def test_best_hits():
    hits = best_hits(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([False, False, True]), ["a", "b", "c"], 2)
    assert [(h.content, h.correct) for h in hits] == [("b", False), ("c", True)]
    assert hits[0].score == pytest.approx(0.9)
    assert len(best_hits(torch.zeros(2), torch.zeros(2, dtype=torch.bool), ["a", "b"], 9)) == 2


def test_wrapping_keeps_words_and_breaks_chinese():
    font = ImageFont.load_default(20)
    lines = _wrap("hello brave new world", font, font.getlength("hello brave"))
    assert lines == ["hello brave", "new world"]
    assert _wrap("abcdefghij", font, font.getlength("abcd") + 1)[0] == "abcd"
    assert _wrap("", font, 10) == [""]
    assert "".join(_wrap("一只很长的猫", font, 1)) == "一只很长的猫"


def test_chinese_font_draws_chinese():
    found = fonts.find_chinese_font()
    assert found is not None, "the extra [demo] brings a font"
    font = fonts.ChineseFont()
    assert font.drawable("猫") == "猫"
    assert bytes(font.at(30).getmask("猫")) != bytes(font.at(30).getmask("狗"))


def test_without_a_font_one_warning_and_escapes(no_font, caplog):
    with caplog.at_level(logging.WARNING, logger=fonts.__name__):
        contact_sheet(text_queries())
        contact_sheet(text_queries())
    assert len(caplog.records) == 1
    assert "pip install mplfonts" in caplog.text
    assert fonts.ChineseFont().drawable("猫a") == "\\u732ba"


def test_fonts_without_chinese_are_passed_over(tmp_path, monkeypatch):
    from matplotlib import font_manager

    latin = font_manager.findfont("DejaVu Sans")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert not fonts._has_chinese(latin, 0)
    assert not fonts._has_chinese(broken, 0)
    assert fonts._faces(broken.with_suffix(".ttc")) == []


def history() -> list[dict]:
    entries = [
        {
            "step": s,
            "epoch": s / 9,
            "loss": 9 / s,
            "loss_gcpr": 5 / s,
            "loss_mlm": 4 / s,
            "images_per_second": 80.0 + s,
        }
        for s in range(1, 30)
    ]
    entries.insert(10, {"step": 10, "eval_loss": 1.0, "eval_text_to_image_r1": 10.0, "eval_image_to_text_r1": 9})
    return [*entries, {"train_runtime": 3.0, "step": 29, "note": "text", "flag": True}]


def test_training_curves(tmp_path):
    path = training_curves(history(), tmp_path / "deep" / "curves.png", title="run")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > image.height
        three_panels = image.width
    with Image.open(training_curves([{"step": 1, "loss": 2.0}], tmp_path / "one.png")) as image:
        assert image.width == pytest.approx(three_panels / 3, abs=3)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="neither loss"):
        training_curves([{"step": 3, "learning_rate": 1.0}, {"loss": 2.0}], tmp_path / "x.png")

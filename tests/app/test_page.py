"""The page as it is built: its tabs, what it says, nothing from elsewhere; and the command's errors."""

import re
import sys
import threading
import time

import gradio as gr
import pytest

from modeling_r2d2.app import AppModels, actions, build_app
from modeling_r2d2.app.actions import Found, Row
from modeling_r2d2.app.style import CSS, rows_table, status, theme
from modeling_r2d2.cli import main
from tests.app.conftest import save_model


def tabs(page: gr.Blocks) -> list[str]:
    return [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]


def words(page: gr.Blocks) -> str:
    return " ".join(str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML))


def test_a_tab_for_what_was_given(place, drawing_place, tmp_path):
    everything = build_app(AppModels.open(index=place.index, text_to_image=drawing_place.text_to_image))
    assert tabs(everything) == ["搜图 Search", "匹配 Match", "分类 Labels", "画图 Draw"]
    assert "8 张图片" in words(everything)
    model_only = build_app(AppModels.open(place.model))
    assert tabs(model_only) == ["匹配 Match", "分类 Labels"]
    assert "--index" in words(model_only)
    prd2 = build_app(AppModels.open(save_model(tmp_path / "prd2", ranker=False)))
    assert tabs(prd2) == ["分类 Labels"]
    assert "pre-ranking only" in words(prd2)


def test_no_analytics_no_fonts_from_elsewhere(models):
    page = build_app(models, examples=["马"])
    assert page.analytics_enabled is False
    assert theme()._stylesheets == []
    style = CSS + theme()._get_theme_css()
    assert re.findall(r"@import|@font-face|url\((?![\"']?data:)", style) == []


def test_one_computation_at_a_time(models, monkeypatch):
    """Whatever visitors ask, the models compute for one of them."""
    computing, most = [], []

    def compute(*_):
        computing.append(None)
        most.append(len(computing))
        time.sleep(0.02)
        computing.pop()
        return [], []

    for name in ("search_by_text", "search_by_image", "match", "classify"):
        monkeypatch.setattr(actions, name, lambda *values, name=name: Found(*compute()) if "by" in name else compute())
    monkeypatch.setattr("modeling_r2d2.app.turns.checked_image", lambda models, file: file)
    functions = {each.api_name: each for each in build_app(models, examples=["马"]).fns.values()}
    visits = [
        threading.Thread(target=functions[name].fn, args=[None] * len(functions[name].inputs))
        for name in ("search", "search_by_image", "match", "classify") * 2
    ]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join()
    assert most == [1] * 8


def test_texts_of_visitors_are_escaped():
    table = rows_table([Row("<img src=x onerror=alert(1)>", 0.25, 0.5), Row("b", 0.001, -0.1)], "匹配")
    assert "<img" not in table
    assert "&lt;img" in table
    assert "width:25.0%" in table
    assert "25.0%</td>" in table
    assert "0.500</td>" in table
    assert rows_table([], "匹配") == ""
    assert status("<b>", error=True) == '<p class="r2d2-error" role="alert">&lt;b&gt;</p>'


def test_what_cannot_be_opened(place, models):
    with pytest.raises(ValueError, match="--model DIR, or --index INDEX"):
        AppModels.open()
    with pytest.raises(ValueError, match="{} where the label goes"):
        build_app(models, template="一张图片")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model DIR, or --index INDEX"),
        (["--index", "{root}/nowhere"], "no such folder"),
        (["--model", "{root}/model", "--template", "无"], "{{}} where the label goes"),
    ],
)
def test_command_errors_are_one_line(place, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["r2d2", "app", *(each.format(root=place.root) for each in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message.format() in capsys.readouterr().err

"""The guide's commands serve the page, here with a tiny model in place of the demo's; its pictures are there."""

import re
import shlex
import shutil
import urllib.request
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_r2d2.app import launch_app
from modeling_r2d2.cli import app

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["app.md", "app.zh.md"])
def test_guide(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/demo").symlink_to(place.model)
    shutil.copytree(place.images, "photos")
    pages = []

    def launch(page, host, port, block):
        assert (host, port) == ("127.0.0.1", 7860)  # which the guide names; another may be free here
        address = launch_app(page, host, None, block)
        pages.append(urllib.request.urlopen(f"{address}config").read().decode())
        return address

    monkeypatch.setattr("modeling_r2d2.app.launch_app", launch)
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda page: None)
    text = (DOCS / name).read_text(encoding="utf-8")
    assert "http://127.0.0.1:7860" in text
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    try:
        for line in lines:
            program, *arguments = shlex.split(line)
            if program == "hf":  # an upload
                assert arguments[2] == "examples/space"
                continue
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (line, result.output, result.exception)
    finally:
        gr.close_all()
    assert len(pages) == 1
    assert all(word in pages[0] for word in ("搜图 Search", "狐狸", "向日葵"))


@pytest.mark.parametrize("name", ["app_search.png", "app_phone.png"])
def test_screenshots(name):
    """Are shown in both languages with whose pictures they show, and are not heavy."""
    file = DOCS / "images" / name
    assert Image.open(file).format == "PNG"
    assert file.stat().st_size < 260_000
    for page in ("app.md", "app.zh.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        assert f"images/{name}" in text
        assert "Twemoji" in text
        assert "CC BY 4.0" in text

"""The Space's folder: a header that the Hub takes, requirements that are ours, and a program that serves the page."""

import configparser
import json
import re
import runpy
import urllib.request
from pathlib import Path

import gradio as gr
import yaml

from modeling_r2d2.app import launch_app
from modeling_r2d2.hub_cards.licenses import HUB_LICENSES

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def header() -> dict:
    match = re.match(r"\A---\n(.*?)\n---\n", (SPACE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(match[1])


def pin(name: str) -> str:
    return re.search(rf"^{name}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def test_header():
    """As huggingface.co/docs/hub/spaces-config-reference says."""
    card = header()
    assert set(card) >= {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "license"}
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == pin("gradio")
    assert isinstance(card["python_version"], str)  # 3.10 as a number would be 3.1
    assert {card["colorFrom"], card["colorTo"]} <= COLORS
    assert len(card["emoji"]) == 1
    assert len(card["short_description"]) <= 60
    assert card["license"] in HUB_LICENSES
    assert (SPACE / card["app_file"]).is_file()


def test_requirements_name_extras_that_exist():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (requirement,) = [line for line in lines if not line.startswith("#")]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,-]+)\]", requirement).groups()
    assert name == config["metadata"]["name"]
    assert set(extras.split(",")) <= set(config["options.extras_require"])


def test_it_serves_the_page(place, tmp_path, monkeypatch):
    """With a model and pictures that its variables name; the index is made on the way."""
    served = []

    def launch(page):
        served.append(launch_app(page, block=False))

    (tmp_path / "photos").symlink_to(place.images)
    variables = {"R2D2_MODEL": place.model, "R2D2_PHOTOS": tmp_path / "photos", "R2D2_EXAMPLES": "马,小船"}
    for name, value in {**variables, "GRADIO_TEMP_DIR": tmp_path / "uploads"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("modeling_r2d2.app.launch_app", launch)
    try:
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
        with urllib.request.urlopen(f"{served[0]}config") as answer:
            components = json.load(answer)["components"]
    finally:
        gr.close_all()
    assert [each["props"]["label"] for each in components if each["type"] == "tabitem"][0] == "搜图 Search"
    assert [each["props"]["samples"] for each in components if each["type"] == "dataset"] == [[["马"], ["小船"]]]
    assert (tmp_path / "photos.index" / "manifest.json").is_file()

"""A tiny model, a folder of eight pictures with captions for names, its index, and the page on a port of its own."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from modeling_r2d2.app import AppModels
from modeling_r2d2.search import R2D2Retriever
from tests.helpers import tiny_image, tiny_model, tiny_processor

NAMES = ["一只猫", "马", "小船", "黄鸟", "红花", "白狗", "大山", "鱼"]


@dataclass
class Place:
    """Folders below `root`: model, pictures, index, text_to_image."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def images(self) -> Path:
        return self.root / "pictures"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def text_to_image(self) -> Path:
        return self.root / "text_to_image"

    def image(self, name: str) -> str:
        return str(self.images / f"{name}.png")


def save_model(folder: Path, ranker: bool = True) -> Path:
    torch.manual_seed(0)
    tiny_model(ranker=ranker).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("app"))
    save_model(place.model)
    place.images.mkdir()
    for seed, name in enumerate(NAMES):
        tiny_image(seed).save(place.image(name))
    R2D2Retriever.build(place.images, place.model, place.index)
    return place


@pytest.fixture(scope="session")
def models(place) -> AppModels:
    return AppModels.open(index=place.index)


@pytest.fixture(scope="session")
def drawing_place(place) -> Place:
    """The same with a tiny text-to-image pipeline, saved."""
    pytest.importorskip("diffusers")
    from tests.text_to_image.conftest import tiny_pipeline

    tiny_pipeline(ranker=True).save_pretrained(place.text_to_image)
    return place


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def address(drawing_place, tmp_path_factory):
    """`r2d2 app` in a process of its own, with everything that it can show."""
    place, port = drawing_place, free_port()
    command = [sys.executable, "-m", "modeling_r2d2.cli", "app", "--index", place.index, "--port", port]
    command += ["--text-to-image", place.text_to_image, "--example", "小船"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    log = tmp_path_factory.mktemp("log") / "app.log"
    with log.open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=file, env=environment)
        try:
            line = process.stdout.readline().decode()  # blocks until the page is there, or the process has ended
            assert f"http://127.0.0.1:{port}" in line, log.read_text()
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait(timeout=20)


def chromium() -> str | None:
    """A browser of this system; none is downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium fonts-noto-cjk")
    options = ["--disable-gpu", "--disable-quic", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--no-sandbox")  # which Chromium cannot have as root
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=options)
        yield opened
        opened.close()

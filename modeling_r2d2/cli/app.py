"""`r2d2 app`: the demo page in a browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..processing.files.settings import setting
from .options import Computing
from .terminal import Terminal


@dataclass(kw_only=True)
class AppSettings(Computing):
    """What `r2d2 app` takes."""

    model: str | None = setting(None, "The folder or name of the model. The default is the model of the index.")
    index: Path | None = setting(None, "The folder that `r2d2 index` made, to search in.")
    text_to_image: Path | None = setting(None, "The folder of a text-to-image pipeline, for drawing.")
    host: str = setting("127.0.0.1", "The address that is listened on. With 0.0.0.0 other machines can visit, too.")
    port: int = setting(7860, "The port of the page.", bounds={"least": 1, "most": 65535, "whole": True})
    examples: list[str] = setting([], "A query to click on. It can be repeated.", "--example")
    template: str = setting("一张{}的图片", "What the labels are put into at first, in place of {}.")
    calibrated: bool = setting(True, "Use the calibration of the model, if it has one.")
    verify: bool = setting(True, "Check the checksums of the index first.")
    score: Literal["fused", "published"] | None = setting(
        None, "What orders hits, as for `r2d2 search`. The default is as the model says."
    )


def app(settings: AppSettings) -> None:
    """A page in the browser: search, match probability, zero-shot labels and, with a pipeline, drawing."""
    from ..app import AppModels, build_app, launch_app

    names = ("model", "index", "text_to_image", "device", "calibrated", "verify", "score")
    models = AppModels.open(**{name: getattr(settings, name) for name in names})
    page = build_app(models, settings.examples, settings.template)
    address = launch_app(page, settings.host, settings.port, block=False)
    Terminal().print(f"the page is at {address} (Ctrl+C ends it)")
    page.block_thread()

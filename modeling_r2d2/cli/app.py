"""`r2d2 app`: the demo page in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, TrustRemoteCode
from .terminal import Terminal


def app(
    model: Annotated[str | None, typer.Option(help="Model folder or name; default: the one of the index.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder that `r2d2 index` made, to search in.")] = None,
    text_to_image: Annotated[Path | None, typer.Option(help="Folder of a text-to-image pipeline.")] = None,
    host: Annotated[str, typer.Option(help="'0.0.0.0': visitors from other machines, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    example: Annotated[list[str] | None, typer.Option(help="A query to click on; repeatable.")] = None,
    template: Annotated[str, typer.Option(help="What the labels are put into at first, at {}.")] = "一张{}的图片",
    calibrated: Annotated[bool, typer.Option(help="Use the model's calibration, if it has one.")] = True,
    verify: Annotated[bool, typer.Option(help="Check the checksums of the index first.")] = True,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """A page in the browser: search, match probability, zero-shot labels and, with a pipeline, drawing."""
    from ..app import AppModels, build_app, launch_app

    models = AppModels.open(model, index, text_to_image, device, calibrated, verify)
    page = build_app(models, example or (), template)
    address = launch_app(page, host, port, block=False)
    Terminal().print(f"the page is at {address} (Ctrl+C ends it)")
    page.block_thread()

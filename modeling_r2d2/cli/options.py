"""Options that several verbs share."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from .terminal import quiet_libraries


def verb(run: Callable[..., None]) -> Callable[..., None]:
    """The function of a verb, which quiets the libraries when it runs: help and completion import none of them."""

    @functools.wraps(run)
    def quietly(*args: Any, **options: Any) -> None:
        quiet_libraries()
        run(*args, **options)

    return quietly


def _trust(context: typer.Context, value: bool) -> bool:
    if value:
        from ..inference.loading import trusting_remote_code

        context.with_resource(trusting_remote_code())
    return value


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_trust,
        help="Run code that a model, tokenizer or processor brings in its folder; without it none runs.",
    ),
]
"""For every verb that loads a model: within the verb, `modeling_r2d2.inference.loading` trusts what it loads."""


@contextmanager
def _reading_pixels(limit: int) -> Iterator[None]:
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit  # which `open_image` heeds, also in workers
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _limit_pixels(context: typer.Context, value: int | None) -> int | None:
    if value is not None:
        context.with_resource(_reading_pixels(value))
    return value


MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        callback=_limit_pixels,
        help="Read pictures of up to so many pixels, width x height. Default: 134 million.",
    ),
]
"""For every verb that reads pictures."""

ImageColumn = Annotated[
    str | None, typer.Option(help="Column (or key) of the pictures; default: image, file_name, 图片, … as found.")
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column (or key) of the texts; default: text, caption, 标题, … as found.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Of text files: gb18030, big5, …; default: UTF-8, UTF-16 or GB18030, as found.")
]


def columns_of(image: str | None, text: str | None, label: str | None = None) -> dict[str, str] | None:
    """`columns` of `load_pairs`, or None where no column was named."""
    named = {"image": image, "text": text, "label": label}
    return {field: name for field, name in named.items() if name is not None} or None


def check_device(name: str | None) -> str | None:
    """The device, if torch can compute on it here."""
    if name is None:
        return None
    import torch

    try:
        if torch.device(name).type == "meta":
            raise ValueError("it computes nothing")
        torch.empty(1, device=name)
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError
        reason = str(error).strip().split("\n")[0]
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise typer.BadParameter(f"{name!r} cannot be used here ({reason}); there is: {', '.join(there)}") from error
    return name


Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda', …", callback=check_device)]


__all__ = [
    "Device",
    "Encoding",
    "ImageColumn",
    "MaxPixels",
    "TextColumn",
    "TrustRemoteCode",
    "check_device",
    "columns_of",
    "verb",
]

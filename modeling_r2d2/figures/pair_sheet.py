"""Contact sheet of a data set: pictures with their captions below."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from PIL import Image, ImageDraw, ImageOps

from .contact_sheet import _cut, _wrap
from .drawings import save_drawing
from .fonts import ChineseFont

_INK, _PALE, _PAPER = "#1f2933", "#e4e7eb", "#ffffff"
_LINES = 2


def pair_sheet(
    pairs: Sequence[tuple[Image.Image, str]],
    path: str | PathLike | None = None,
    title: str | None = None,
    columns: int = 6,
    tile: int = 120,
    scale: int = 2,
) -> Image.Image:
    """Draw pictures in a grid, each with two lines of its caption.

    Args:
        path: where to write the PNG (folders are made); None: nowhere. tile: side of a picture; scale: pixels per unit.

    Returns:
        the sheet, RGB.

    Raises:
        ValueError: no pictures.
    """
    if not pairs:
        raise ValueError("a contact sheet needs at least one picture")
    font = ChineseFont()
    margin, gap, line = 24 * scale, 14 * scale, 19 * scale
    side, top = tile * scale, (58 if title else 24) * scale
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    cell = side + _LINES * line + gap
    width = max(2 * margin + columns * (side + gap) - gap, 320 * scale)
    sheet = Image.new("RGB", (width, top + rows * cell + margin - gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        heading = font.at(20 * scale)
        pen.text((margin, 20 * scale), _cut(font.drawable(title), heading, width - 2 * margin), font=heading, fill=_INK)
    small = font.at(13 * scale)
    for place, (image, caption) in enumerate(pairs):
        x, y = margin + place % columns * (side + gap), top + place // columns * cell
        image = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
        pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_PAPER, outline=_PALE)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        lines = _wrap(font.drawable(caption), small, side)
        if len(lines) > _LINES:
            lines = [*lines[: _LINES - 1], _cut("".join(lines[_LINES - 1 :]), small, side)]
        for number, text in enumerate(lines):
            pen.text((x, y + side + 3 * scale + number * line), text, font=small, fill=_INK)
    if path is not None:
        save_drawing(sheet, path)
    return sheet

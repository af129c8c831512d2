"""A sheet of generated pictures: prompts × seeds, beside what people drew."""

from collections.abc import Sequence
from os import PathLike

from PIL import Image, ImageDraw

from ..figures.drawings import save_drawing
from ..figures.fonts import ChineseFont

_TILE, _GAP, _MARGIN, _LABEL, _BELOW = 160, 16, 40, 260, 34
_INK, _GREY, _PALE, _GREEN = "#1f2933", "#7b8794", "#e4e7eb", "#1a9850"


def sample_sheet(
    prompts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    path: str | PathLike | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    scores: Sequence[Sequence[float]] | None = None,
    found: Sequence[Sequence[bool]] | None = None,
    real: Sequence[Sequence[Image.Image]] | None = None,
) -> Image.Image:
    """Draw prompts × seeds.

    Args:
        prompts: P.
        images: P lists of S generated pictures; small ones are enlarged by whole pixels.
        path: where to write the PNG (folders are made); None: nowhere.
        scores: P × S numbers below the pictures.
        found: P × S, a green frame around those that are True.
        real: P lists of drawn pictures, to compare with.

    Returns:
        the sheet, RGB.

    Raises:
        ValueError: no prompts, or numbers of prompts and rows that differ.
    """
    blocks = {"generated": images} | ({} if real is None else {"drawn by people": real})
    if not prompts or any(len(rows) != len(prompts) for rows in blocks.values()):
        raise ValueError(f"{len(prompts)} prompts need as many rows of pictures, and at least one")
    font = ChineseFont()
    heading = (46 if title else 0) + (34 if subtitle else 0)
    top = _MARGIN + heading + 40
    below = _BELOW if scores is not None else _GAP
    lefts, right = {}, _MARGIN + _LABEL
    for name, rows in blocks.items():
        lefts[name] = right
        right += max(map(len, rows)) * (_TILE + _GAP) + 2 * _GAP
    least = max((font.at(22).getlength(font.drawable(text)) for text in (title, subtitle) if text), default=0)
    width = int(max(right, least + 2 * _MARGIN))
    sheet = Image.new("RGB", (width, top + len(prompts) * (_TILE + below) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for text, size, y, color in ((title, 30, _MARGIN, _INK), (subtitle, 20, _MARGIN + heading - 34, _GREY)):
        if text:
            pen.text((_MARGIN, y), font.drawable(text), font=font.at(size), fill=color)
    for name, left in lefts.items():
        pen.text((left, top - 34), name, font=font.at(20), fill=_GREY)
    for row, prompt in enumerate(prompts):
        y = top + row * (_TILE + below)
        pen.text((_MARGIN, y + _TILE // 2), font.drawable(prompt), font=font.at(30), fill=_INK, anchor="lm")
        for name, rows in blocks.items():
            for column, image in enumerate(rows[row]):
                x = lefts[name] + column * (_TILE + _GAP)
                framed = name == "generated" and found is not None and bool(found[row][column])
                box = (x - 4, y - 4, x + _TILE + 3, y + _TILE + 3)
                pen.rectangle(box, outline=_GREEN if framed else _PALE, width=4 if framed else 1)
                fitted = _fitted(image)
                sheet.paste(fitted, (x + (_TILE - fitted.width) // 2, y + (_TILE - fitted.height) // 2))
                if name == "generated" and scores is not None:
                    place = (x + _TILE, y + _TILE + 6)
                    color = _GREEN if framed else _GREY
                    pen.text(place, f"{scores[row][column]:.2f}", font=font.at(18), fill=color, anchor="ra")
    if path is not None:
        save_drawing(sheet, path)
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    """Within the tile: by whole pixels where it is small, resampled where it is large."""
    factor = _TILE // max(image.size)
    if factor >= 1:
        size = (image.width * factor, image.height * factor)
        return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    scale = _TILE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)

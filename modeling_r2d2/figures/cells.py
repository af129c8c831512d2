"""Rows of cells on a sheet: pictures or texts, what is written below them, and a mark on those that are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from PIL import Image, ImageDraw

from ..processing.files.images import open_image
from .drawings import save_drawing
from .fonts import ChineseFont

#: A text (str), or a picture: PIL, or the `Path` of a file.
Content = str | PathLike | Image.Image

_INK, _GRAY, _PALE, _PAPER = "#1f2933", "#7b8794", "#e4e7eb", "#ffffff"
_GREEN, _GREEN_PAPER = "#1a9850", "#e8f6ee"
_CAPTION_LINES = 2


@dataclass(frozen=True)
class Cell:
    """One tile.

    Args:
        content: what it shows.
        left: below it, on the left.
        right: below it, on the right.
        caption: below it instead, on two lines.
        correct: framed green and ticked.
    """

    content: Content
    left: str = ""
    right: str = ""
    caption: str = ""
    correct: bool = False


@dataclass(frozen=True)
class Row:
    """A label, if there is one, and cells in blocks of columns, by the name that stands above each block."""

    label: Content | None
    blocks: Mapping[str, Sequence[Cell]]


def draw_sheet(
    rows: Sequence[Row],
    path: str | PathLike | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    tile: int = 88,
    scale: int = 2,
    whole_pixels: bool = False,
) -> Image.Image:
    """Draw a sheet.

    Args:
        rows: one or more, all with blocks of the same names.
        path: where to write the PNG (folders are made); None: nowhere.
        title: above the sheet; Chinese is fine.
        subtitle: below the title.
        tile: side of a picture, in units.
        scale: pixels per unit, 2 for sharp display.
        whole_pixels: small pictures are enlarged by whole pixels.

    Returns:
        the sheet, RGB.

    Raises:
        FileExistsError: see `save_drawing`.
    """
    sheet = _Sheet(rows, title, subtitle, tile, scale, whole_pixels).draw()
    if path is not None:
        save_drawing(sheet, path)
    return sheet


class _Sheet:
    """Layout in units; everything is multiplied by `scale` when it is drawn."""

    margin, gap, block_gap, line, label_width = 28, 10, 30, 19, 168

    def __init__(
        self,
        rows: Sequence[Row],
        title: str | None,
        subtitle: str | None,
        tile: int,
        scale: int,
        whole_pixels: bool,
    ) -> None:
        self.rows, self.title, self.subtitle, self.whole_pixels = rows, title, subtitle, whole_pixels
        self.tile, self.scale, self.font = tile, scale, ChineseFont()
        names = list(rows[0].blocks)
        columns = {name: max(len(row.blocks[name]) for row in rows) for name in names}
        cells = [cell for row in rows for block in row.blocks.values() for cell in block]
        noted = 22 if any(cell.left or cell.right for cell in cells) else 0
        self.below = 3 + _CAPTION_LINES * self.line if any(cell.caption for cell in cells) else noted
        self.row_height = tile + self.below + 18
        headings = 40 if any(names) else 14
        self.top = self.margin + (34 if title else 0) + (26 if subtitle else 0) + headings
        self.block_width = {name: max(count * (tile + self.gap) - self.gap, 150) for name, count in columns.items()}
        labels = any(row.label is not None for row in rows)
        self.left, x = {}, self.margin + (self.label_width + self.block_gap if labels else 0)
        for name in names:
            self.left[name] = x
            x += self.block_width[name] + self.block_gap
        self.width = x - self.block_gap + self.margin
        self.height = self.top + self.row_height * len(rows) + self.margin - 14
        self.image = Image.new("RGB", (self.width * scale, self.height * scale), _PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def draw(self) -> Image.Image:
        y = self.margin
        if self.title:
            self._text(self.margin, y, self.title, 22, _INK, width=self.width - 2 * self.margin)
            y += 34
        if self.subtitle:
            self._text(self.margin, y, self.subtitle, 14, _GRAY, width=self.width - 2 * self.margin)
        for name, left in self.left.items():
            if name:
                self._text(left, self.top - 34, name, 15, _INK, width=self.block_width[name])
                self._line(left, self.top - 10, left + self.block_width[name], self.top - 10, _INK)
        for number, row in enumerate(self.rows):
            self._row(row, self.top + number * self.row_height)
        return self.image

    def _row(self, row: Row, y: int) -> None:
        if isinstance(row.label, str):
            self._paragraph(row.label, self.margin, y, self.label_width, self.tile, 22)
        elif row.label is not None:
            self._image(row.label, self.margin, y)
        for name, left in self.left.items():
            for place, cell in enumerate(row.blocks[name]):
                self._cell(cell, left + place * (self.tile + self.gap), y)
        bottom = y + self.row_height - 9
        if row is not self.rows[-1]:
            self._line(self.margin, bottom, self.width - self.margin, bottom, _PALE)

    def _cell(self, cell: Cell, x: int, y: int) -> None:
        if isinstance(cell.content, str):
            self._box(x, y, _GREEN_PAPER if cell.correct else _PAPER, _PALE, 1)
            self._paragraph(cell.content, x + 7, y + 4, self.tile - 14, self.tile - 8, 15)
        else:
            self._image(cell.content, x, y)
        if cell.correct:
            self._box(x - 3, y - 3, None, _GREEN, 3.5, side=self.tile + 6)
        below = y + self.tile + 5
        color = _GREEN if cell.correct else _GRAY
        self._text(x + 1, below, cell.left, 13, color)
        self._text(x + self.tile - 1, below, cell.right, 13, color, anchor="right")
        if cell.correct and cell.left:
            self._tick(x + 16, below + 3)
        font = self.font.at(13 * self.scale)
        lines = _fit(_wrap(self.font.drawable(cell.caption), font, self.tile * self.scale), _CAPTION_LINES)
        for number, text in enumerate(lines):
            self._text(x, below - 2 + number * self.line, text, 13, _INK, width=self.tile)

    def _image(self, content: PathLike | Image.Image, x: int, y: int) -> None:
        image = open_image(content, background=_PAPER)
        side = (self.tile - 10) * self.scale
        factor = min(side / image.width, side / image.height)
        resample = Image.Resampling.LANCZOS
        if self.whole_pixels and factor >= 1:
            factor, resample = int(factor), Image.Resampling.NEAREST
        size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
        image = image.resize(size, resample)
        self._box(x, y, _PAPER, _PALE, 1)
        center = (self.tile * self.scale - size[0]) // 2, (self.tile * self.scale - size[1]) // 2
        self.image.paste(image, (x * self.scale + center[0], y * self.scale + center[1]))

    def _box(self, x, y, fill, outline, width, side=None):
        side = self.tile if side is None else side
        corners = [round(v * self.scale) for v in (x, y, x + side, y + side)]
        self.pen.rounded_rectangle(
            corners, radius=9 * self.scale, fill=fill, outline=outline, width=round(width * self.scale)
        )

    def _line(self, x0, y0, x1, y1, color):
        self.pen.line([v * self.scale for v in (x0, y0, x1, y1)], fill=color, width=self.scale)

    def _tick(self, x, y):
        points = [(x, y + 6), (x + 4, y + 10), (x + 12, y + 1)]
        points = [(round(a * self.scale), round(b * self.scale)) for a, b in points]
        self.pen.line(points, fill=_GREEN, width=2 * self.scale, joint="curve")

    def _text(self, x, y, text, size, color, anchor="left", width=None):
        """One line, its top at y, cut with an ellipsis at `width`."""
        font = self.font.at(size * self.scale)
        text = self.font.drawable(text)
        if width is not None:
            text = _cut(text, font, width * self.scale)
        place = (x * self.scale, (y + size * 0.94) * self.scale)
        self.pen.text(place, text, font=font, fill=color, anchor={"left": "ls", "right": "rs"}[anchor])

    def _paragraph(self, text: str, x: int, y: float, width: int, height: int, size: int) -> None:
        """Wrapped text, vertically centred within the box; smaller, then cut, where it does not fit."""
        text = self.font.drawable(text)
        for smaller in range(size, 9, -1):
            font = self.font.at(smaller * self.scale)
            lines = _wrap(text, font, width * self.scale)
            step = smaller * 1.3
            if len(lines) * step <= height:
                break
        lines = _fit(lines, max(int(height // step), 1))
        lines[-1] = _cut(lines[-1], font, width * self.scale)
        y += (height - len(lines) * step) / 2
        for line in lines:
            place = (x * self.scale, (y + smaller * 1.02) * self.scale)
            self.pen.text(place, line, font=font, fill=_INK, anchor="ls")
            y += step


def _fit(lines: list[str], most: int) -> list[str]:
    """At most so many lines; the last one then holds all that is left."""
    return lines if len(lines) <= most else [*lines[: most - 1], "".join(lines[most - 1 :])]


def _wrap(text: str, font, width: float) -> list[str]:
    """Lines no wider than `width`: breaks at spaces and, as Chinese does, between any two characters else."""
    lines, line = [], ""
    for word in _words(text):
        if line and font.getlength(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        for character in word:  # a word alone may be wider than the line
            if line and character != " " and font.getlength(line + character) > width:
                lines.append(line.rstrip())
                line = ""
            line += character
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _words(text: str) -> list[str]:
    """Pieces that stay on one line: single Chinese characters, words of other scripts with their space."""
    pieces: list[str] = []
    for character in " ".join(text.split()):
        if pieces and (
            character == " " or (character.isascii() and pieces[-1][-1:].isascii() and pieces[-1][-1] != " ")
        ):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _cut(text: str, font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


__all__ = ["Cell", "Content", "Row", "draw_sheet"]

"""Contact sheet: queries and what was found for them, side by side for every way of searching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from PIL import Image, ImageDraw
from torch import Tensor

from ..processing.files.images import open_image
from .drawings import save_drawing
from .fonts import ChineseFont

Content = str | PathLike | Image.Image

_INK, _GREY, _PALE, _PAPER = "#1f2933", "#7b8794", "#e4e7eb", "#ffffff"
_GREEN, _GREEN_PAPER = "#1a9850", "#e8f6ee"


@dataclass(frozen=True)
class Hit:
    """One found item: a picture (PIL, or `Path` of a file) or a text (str), its score, and whether it is right."""

    content: Content
    score: float
    correct: bool


@dataclass(frozen=True)
class Query:
    """A query, a text or a picture, and its hits, best first, under the name of each way of searching."""

    content: Content
    hits: Mapping[str, Sequence[Hit]]


def best_hits(scores: Tensor, positives: Tensor, contents: Sequence[Content], count: int = 5) -> list[Hit]:
    """The `count` best of a gallery for one query, as `Hit`s.

    Args:
        scores: (G,). positives: (G,) boolean. contents: the G pictures or texts of the gallery.
    """
    values, places = scores.float().topk(min(count, len(scores)))
    return [
        Hit(contents[place], value, bool(positives[place]))
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
    ]


def contact_sheet(
    queries: Sequence[Query],
    path: str | PathLike | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    tile: int = 88,
    scale: int = 2,
) -> Image.Image:
    """Draw queries and their hits; what is right is framed green and ticked, with rank and score below.

    Args:
        queries: one row each; all with the same ways of searching, which become blocks of columns.
        path: where to write the PNG (folders are made); None: nowhere.
        title, subtitle: above the sheet; Chinese is fine.
        tile: side of a picture; scale: pixels per unit, 2 for sharp display.

    Returns:
        the sheet, RGB.

    Raises:
        ValueError: no queries, or queries with different ways of searching.
    """
    if not queries:
        raise ValueError("a contact sheet needs at least one query")
    ways = list(queries[0].hits)
    if any(list(query.hits) != ways for query in queries):
        raise ValueError(f"every query must have the hits of the same ways of searching: {ways}")
    sheet = _Sheet(queries, ways, title, subtitle, tile, scale).draw()
    if path is not None:
        save_drawing(sheet, path)
    return sheet


class _Sheet:
    """Layout in units; everything is multiplied by `scale` when it is drawn."""

    margin, gap, block_gap, caption, query_width = 28, 10, 30, 22, 168

    def __init__(self, queries, ways, title, subtitle, tile, scale):
        self.queries, self.ways, self.title, self.subtitle = queries, ways, title, subtitle
        self.tile, self.scale, self.font = tile, scale, ChineseFont()
        self.columns = {way: max(len(query.hits[way]) for query in queries) for way in ways}
        self.row_height = tile + self.caption + 18
        self.top = self.margin + (34 if title else 0) + (26 if subtitle else 0) + 40
        self.left = {}
        x = self.margin + self.query_width + self.block_gap
        for way in ways:
            self.left[way] = x
            x += max(self._block_width(way), 150) + self.block_gap
        self.width = x - self.block_gap + self.margin
        self.height = self.top + self.row_height * len(queries) + self.margin - 14

    def _block_width(self, way: str) -> int:
        return self.columns[way] * (self.tile + self.gap) - self.gap

    def draw(self) -> Image.Image:
        size = (self.width * self.scale, self.height * self.scale)
        self.image = Image.new("RGB", size, _PAPER)
        self.pen = ImageDraw.Draw(self.image)
        y = self.margin
        if self.title:
            self._text(self.margin, y, self.title, 22, _INK, width=self.width - 2 * self.margin)
            y += 34
        if self.subtitle:
            self._text(self.margin, y, self.subtitle, 14, _GREY, width=self.width - 2 * self.margin)
        for way in self.ways:
            width = max(self._block_width(way), 150)
            self._text(self.left[way], self.top - 34, way, 15, _INK, width=width)
            self._line(self.left[way], self.top - 10, self.left[way] + width, self.top - 10, _INK)
        for number, query in enumerate(self.queries):
            self._row(query, self.top + number * self.row_height)
        return self.image

    def _row(self, query: Query, y: int):
        if isinstance(query.content, str):
            self._paragraph(query.content, self.margin, y, self.query_width, self.tile, 22, anchor="middle")
        else:
            self._image(query.content, self.margin, y)
        for way in self.ways:
            for place, hit in enumerate(query.hits[way]):
                self._hit(hit, place + 1, self.left[way] + place * (self.tile + self.gap), y)
        bottom = y + self.row_height - 9
        if query is not self.queries[-1]:
            self._line(self.margin, bottom, self.width - self.margin, bottom, _PALE)

    def _hit(self, hit: Hit, rank: int, x: int, y: int):
        if isinstance(hit.content, str):
            self._box(x, y, _GREEN_PAPER if hit.correct else _PAPER, _PALE, 1)
            self._paragraph(hit.content, x + 7, y + 4, self.tile - 14, self.tile - 8, 15, anchor="middle")
        else:
            self._image(hit.content, x, y)
        if hit.correct:
            self._box(x - 3, y - 3, None, _GREEN, 3.5, side=self.tile + 6)
        below = y + self.tile + 5
        color = _GREEN if hit.correct else _GREY
        self._text(x + 1, below, str(rank), 13, color)
        self._text(x + self.tile - 1, below, f"{hit.score:.2f}", 13, color, anchor="right")
        if hit.correct:
            self._tick(x + 16, below + 3)

    def _image(self, content: Content, x: int, y: int):
        image = open_image(content, background=_PAPER)
        side = (self.tile - 10) * self.scale
        factor = min(side / image.width, side / image.height)
        size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
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

    def _paragraph(self, text, x, y, width, height, size, anchor):
        """Wrapped text, vertically centred within the box; smaller, then cut, where it does not fit."""
        text = self.font.drawable(text)
        for smaller in range(size, 9, -1):
            font = self.font.at(smaller * self.scale)
            lines = _wrap(text, font, width * self.scale)
            step = smaller * 1.3
            if len(lines) * step <= height:
                break
        fitting = max(int(height // step), 1)
        if len(lines) > fitting:
            lines = [*lines[: fitting - 1], _cut("".join(lines[fitting - 1 :]), font, width * self.scale)]
        y += (height - len(lines) * step) / 2
        for line in lines:
            place = (x * self.scale, (y + smaller * 1.02) * self.scale)
            self.pen.text(place, line, font=font, fill=_INK, anchor="ls")
            y += step


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

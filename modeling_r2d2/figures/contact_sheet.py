"""Contact sheet: queries and what was found for them, side by side for every way of searching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from PIL import Image
from torch import Tensor

from .cells import Cell, Content, Row, draw_sheet


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
        scores: (G,).
        positives: (G,) boolean.
        contents: the G pictures or texts of the gallery.
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
        title: above the sheet; Chinese is fine.
        subtitle: below the title.
        tile: side of a picture.
        scale: pixels per unit, 2 for sharp display.

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
    rows = [
        Row(
            query.content,
            {
                way: [
                    Cell(hit.content, str(rank), f"{hit.score:.2f}", correct=hit.correct)
                    for rank, hit in enumerate(hits, start=1)
                ]
                for way, hits in query.hits.items()
            },
        )
        for query in queries
    ]
    return draw_sheet(rows, path, title, subtitle, tile, scale)

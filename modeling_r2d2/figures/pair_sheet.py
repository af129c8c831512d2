"""Contact sheet of a data set: pictures with their captions below."""

from collections.abc import Sequence
from os import PathLike

from PIL import Image

from .cells import Cell, Row, draw_sheet


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
        pairs: pictures and captions.
        path: where to write the PNG (folders are made); None: nowhere.
        title: above the sheet.
        columns: pictures beside one another.
        tile: side of a picture.
        scale: pixels per unit.

    Returns:
        the sheet, RGB.

    Raises:
        ValueError: no pictures.
    """
    if not pairs:
        raise ValueError("a contact sheet needs at least one picture")
    cells = [Cell(image, caption=caption) for image, caption in pairs]
    rows = [Row(None, {"": cells[start : start + columns]}) for start in range(0, len(cells), columns)]
    return draw_sheet(rows, path, title, tile=tile, scale=scale)

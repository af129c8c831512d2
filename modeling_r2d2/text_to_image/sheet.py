"""A sheet of generated pictures: prompts × seeds, beside what people drew."""

from collections.abc import Sequence
from os import PathLike

from PIL import Image

from ..figures.cells import Cell, Row, draw_sheet


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

    def below(name: str, row: int, column: int) -> str:
        return f"{scores[row][column]:.2f}" if scores is not None and name == "generated" else ""

    def marked(name: str, row: int, column: int) -> bool:
        return found is not None and name == "generated" and bool(found[row][column])

    rows = [
        Row(
            prompt,
            {
                name: [
                    Cell(image, right=below(name, row, column), correct=marked(name, row, column))
                    for column, image in enumerate(block[row])
                ]
                for name, block in blocks.items()
            },
        )
        for row, prompt in enumerate(prompts)
    ]
    return draw_sheet(rows, path, title, subtitle, whole_pixels=True)

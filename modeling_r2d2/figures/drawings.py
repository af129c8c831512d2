"""PNG files that the package draws: written whole or not at all, marked, and only what bears the mark is replaced."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ..processing.files.writing import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a PNG's text chunk "Software" says.
SOFTWARE = "modeling_r2d2"


def save_drawing(drawing: "Image | Figure", path: str | PathLike, **options: Any) -> Path:
    """Write a picture, or a figure of matplotlib, as PNG; folders are made.

    Args:
        options: for `Figure.savefig`.

    Raises:
        FileExistsError: see `refuse_foreign_drawing`.
    """
    path = Path(path)
    refuse_foreign_drawing(path)
    with atomic_path(path) as partial:
        if isinstance(drawing, Image):
            mark = PngInfo()
            mark.add_text("Software", SOFTWARE)
            drawing.save(partial, format="PNG", optimize=True, pnginfo=mark)
        else:
            drawing.savefig(partial, format="png", metadata={"Software": SOFTWARE}, **options)
    return path


def refuse_foreign_drawing(path: str | PathLike | None) -> None:
    """Raise where a file is in the place of a drawing that is none of ours: a photograph, say.

    Raises:
        FileExistsError: names it.
        IsADirectoryError: it is a folder.
    """
    path = None if path is None else Path(path)
    if path is None or not (path.is_symlink() or path.exists()):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(4096)
        if f"Software\0{SOFTWARE}".encode() not in begin:
            raise FileExistsError(f"{path} was not drawn by this program: name another file, or delete it first")


__all__ = ["SOFTWARE", "refuse_foreign_drawing", "save_drawing"]

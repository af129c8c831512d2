"""The scenes of the demo set: two or three emoji on a canvas, and captions that say where, how many, or on which color.

What a caption says of one picture is wrong of its twin: the same emoji in the other order, the other count, on another
color. So names alone do not find the picture, which is what a ranker is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ..files.images import open_image
from .emoji import VENDORS, Concept, DemoPairs, demo300_keys, emoji_concepts

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
#: How many twins a split has, by each vendor.
TWINS: dict[Split, int] = {"train": 2000, "validation": 150, "test": 150}
#: What the captions of a kind of scene say; a and b are names, {c} a color. All templates of a kind say the same.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "alone": ("{a}", "一个{a}", "只有{a}"),
    "beside": ("左边是{a}，右边是{b}", "{a}在{b}的左边", "{b}在{a}的右边"),
    "above": ("上面是{a}，下面是{b}", "{a}在{b}的上面", "{b}在{a}的下面"),
    "count": ("两个{a}和一个{b}", "一个{b}和两个{a}", "有两个{a}，还有一个{b}"),
    "color": ("{c}背景上的{a}和{b}", "{a}和{b}，背景是{c}的", "{a}和{b}在{c}的背景上"),
}
#: Those of scenes with two or three emoji.
KINDS = ("beside", "above", "count", "color")
#: Backgrounds, light enough for every drawing to be seen on.
COLORS = {
    "红色": (255, 128, 128),
    "黄色": (255, 240, 120),
    "绿色": (140, 225, 140),
    "蓝色": (130, 170, 255),
    "紫色": (205, 150, 235),
    "灰色": (190, 190, 190),
}
CANVAS = 96
_CELL = CANVAS // 2
#: Share of the concept pairs that are kept for validation and for test.
_KEPT = 0.1


@dataclass(frozen=True)
class Scene:
    """What is on a picture, whoever drew it: two of `a` and one of `b` in "count", `a` in "alone", else one of each."""

    kind: str
    a: Concept
    b: Concept
    color: str = ""

    @property
    def key(self) -> str:
        """Of the scene: pictures of one scene by several vendors share it."""
        other = "" if self.kind == "alone" else self.b.key
        return "/".join(filter(None, (self.kind, self.a.key, other, self.color)))

    def captions(self) -> list[str]:
        """All of them true; which is the first differs from scene to scene, and is the twin's too."""
        pair = "-".join(sorted((self.a.key, self.b.key)))
        templates = TEMPLATES[self.kind]
        first = hashlib.blake2b(pair.encode(), digest_size=1).digest()[0] % len(templates)
        texts = [template.format(a=self.a.name, b=self.b.name, c=self.color) for template in templates]
        return texts[first:] + texts[:first]

    def draw(self, vendor: str, rng: np.random.Generator) -> Image.Image:
        """The picture, `CANVAS` a side; `rng` shifts and scales the drawings a little."""
        color = COLORS.get(self.color, (255, 255, 255))
        canvas = Image.new("RGB", (CANVAS, CANVAS), color)
        middle = _CELL / 2
        concepts: tuple[Concept, ...]
        if self.kind == "alone":
            corner = rng.random(2) * _CELL
            concepts, places = (self.a,), [(float(corner[0]), float(corner[1]))]
        elif self.kind == "beside":
            concepts, places = (self.a, self.b), [(0.0, middle), (_CELL, middle)]
        elif self.kind == "above":
            concepts, places = (self.a, self.b), [(middle, 0.0), (middle, _CELL)]
        else:
            concepts = (self.a, self.a, self.b) if self.kind == "count" else (self.a, self.b)
            cells = rng.permutation(4)[: len(concepts)]
            places = [(float(cell % 2 * _CELL), float(cell // 2 * _CELL)) for cell in cells]
        for concept, (left, top) in zip(concepts, places, strict=True):
            side = int(rng.integers(_CELL - 10, _CELL + 1))
            drawing = _drawing(concept.images[vendor], color).resize((side, side), Image.Resampling.BICUBIC)
            shift = rng.random(2) * (_CELL - side)
            canvas.paste(drawing, (int(left + shift[0]), int(top + shift[1])))
        return canvas


class ScenePairs(DemoPairs):
    """Scenes and captions as pairs: `pairs[i]` is `{"image", "text", "image_id"}`, the texts all captions of the scene.

    Pairs 2k and 2k + 1 are twins: their captions differ in one word's place, count or color. While training they stay
    in one batch (`together`), and pictures are not mirrored.

    Args:
        vendors: of `VENDORS`; every scene is drawn by each.
        split: no two concepts that meet in one split meet in another.
        twins: how many, by each vendor; default `TWINS`.
        kinds: of `TEMPLATES`, in equal shares; "alone", one emoji somewhere, is for towers to begin with.
        openly_licensed_only: refuse vendors whose art is proprietary.

    Raises:
        ImportError: the packages of `[demo]` are not installed.
        ValueError: unknown vendor, split or kind, or a proprietary vendor where only open ones may be used.
    """

    together = 2
    mirrors = False

    def __init__(
        self,
        vendors: Sequence[str] = tuple(VENDORS),
        split: Split = "train",
        twins: int | None = None,
        kinds: Sequence[str] = KINDS,
        openly_licensed_only: bool = False,
    ) -> None:
        self.require_vendors(vendors, openly_licensed_only)
        for what, given, known in (("kind", kinds, TEMPLATES), ("split", [split], SPLITS)):
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"unknown {what} {unknown[0]!r}; there are {', '.join(known)}")
        self.split: Split = split
        count = twins or TWINS[split]
        self.scenes = [scene for pair in _twins(split, count, tuple(kinds)) for scene in pair]
        super().__init__([(scene, vendor) for vendor in vendors for scene in self.scenes])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair."""
        scene, _ = self.items[index]
        return {"image": self.image(index), "text": scene.captions(), "image_id": scene.key}

    def image(
        self,
        index: int,
        exif_transpose: bool | None = None,
        background: str | tuple[int, int, int] | None = None,
    ) -> Image.Image:
        """The picture; the same for the same scene and vendor."""
        scene, vendor = self.items[index]
        seed = hashlib.blake2b(f"{scene.key} {vendor}".encode(), digest_size=8).digest()
        return scene.draw(vendor, np.random.default_rng(int.from_bytes(seed, "big")))

    def texts(self, index: int) -> list[str]:
        """All captions of one picture."""
        return self.items[index][0].captions()

    def wrong_text(self, index: int) -> str:
        """The first caption of the twin, which differs from this picture's first in one thing.

        Raises:
            ValueError: of pairs that were selected without their twins.
        """
        if self.together == 1:
            raise ValueError("these pairs were selected without their twins")
        return self.texts(index ^ 1)[0]

    def keys(self) -> list[str]:
        """The scene of every picture."""
        return [scene.key for scene, _ in self.items]

    def identity(self, index: int) -> tuple:
        """As in `Pairs`."""
        scene, vendor = self.items[index]
        drawings = [hashlib.blake2b(each.images[vendor].read_bytes()).hexdigest() for each in (scene.a, scene.b)]
        return scene.key, vendor, *drawings


def _split_of(a: Concept, b: Concept) -> Split:
    """Of an unordered pair of concepts."""
    digest = hashlib.blake2b("-".join(sorted((a.key, b.key))).encode(), digest_size=4).digest()
    share = int.from_bytes(digest, "big") / 2**32
    return "validation" if share < _KEPT else "test" if share < 2 * _KEPT else "train"


@lru_cache(maxsize=8)
def _twins(split: Split, count: int, kinds: tuple[str, ...]) -> tuple[tuple[Scene, Scene], ...]:
    """So many pairs of scenes that differ in one thing, no two concepts meeting twice; the kinds in turn."""
    by_key = {concept.key: concept for concept in emoji_concepts()}
    concepts = [by_key[key] for key in demo300_keys()]
    rng = np.random.default_rng(SPLITS.index(split))
    met: set[frozenset[str]] = set()
    found: list[tuple[Scene, Scene]] = []
    while len(found) < count:
        a, b = (concepts[place] for place in rng.choice(len(concepts), 2, replace=False))
        if _split_of(a, b) != split or frozenset((a.key, b.key)) in met:
            continue
        met.add(frozenset((a.key, b.key)))
        scene = Scene(kinds[len(found) % len(kinds)], a, b)
        if scene.kind == "color":
            one, other = rng.choice(list(COLORS), 2, replace=False)
            found.append((replace(scene, color=str(one)), replace(scene, color=str(other))))
        else:
            found.append((scene, replace(scene, a=b, b=a)))
    return tuple(found)


@lru_cache(maxsize=4096)
def _drawing(path: Path, background: tuple[int, int, int]) -> Image.Image:
    return open_image(path, background=background)

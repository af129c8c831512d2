"""What every set of pairs can be asked, whatever it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .records import stable_ids
from .report import ErrorReport


class Pairs:
    """A set of pairs with a length: `pairs[i]` is
    `{"image": PIL.Image (RGB), "text": str | list[str], "image_id": str}`, in sets of labelled pairs also `"label"`: 1
    where picture and text match, 0 where not.

    What is told here of any set comes from its pairs; a kind that knows it without opening pictures says so itself.

    Attributes:
        labelled: whether every pair has a label.
        background: what transparent pictures are put on, see `open_image`.
        lists_texts: whether texts are known without opening pictures.
        report: of bad records, where the set keeps one.
        together: how many pairs that follow one another belong into one batch, as hard negatives of each other.
        mirrors: whether a picture's texts hold for its mirror image.
        unpaired: pictures without a text that belong to the gallery of a benchmark, or None.
    """

    labelled: bool = False
    background: str | tuple[int, int, int] | None = None
    lists_texts: bool = True
    report: ErrorReport | None = None
    together: int = 1
    mirrors: bool = True
    unpaired: Pairs | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair.

        Raises:
            ImageReadError: the picture cannot be decoded.
        """
        raise NotImplementedError

    def image(
        self,
        index: int,
        exif_transpose: bool | None = None,
        background: str | tuple[int, int, int] | None = None,
    ) -> Image.Image:
        """The picture of a pair, upright where `exif_transpose`; None: as the set is set to. A transparent one is on
        the set's own background, or where it has none on `background`."""
        return self[index]["image"]

    def texts(self, index: int) -> list[str]:
        """All texts of a pair."""
        text = self[index]["text"]
        return [text] if isinstance(text, str) else list(text)

    def first_texts(self) -> list[str]:
        """The first text of every pair."""
        return [self.texts(index)[0] for index in range(len(self))]

    def all_texts(self) -> list[str]:
        """Every text of every pair, in order: for building a vocabulary."""
        return [text for index in range(len(self)) for text in self.texts(index)]

    def keys(self) -> list[str]:
        """The image id of every pair."""
        return [self[index]["image_id"] for index in range(len(self))]

    def image_ids(self) -> np.ndarray:
        """The stable 63-bit id of every pair's picture: (N,) int64."""
        return stable_ids(self.keys())

    def image_keys(self) -> Sequence[Hashable]:
        """What tells the picture of every pair from others, without opening it; by default no two pairs share one."""
        return range(len(self))

    def text_keys(self) -> Sequence[str | None]:
        """The identity of every pair's text where the set has one, else None."""
        return [None] * len(self)

    def labels(self) -> np.ndarray:
        """Of labelled pairs (N,) int64: 1 = match."""
        return np.array([int(self[index]["label"]) for index in range(len(self))])

    def location(self, index: int) -> str:
        """Where a pair comes from, for messages."""
        return f"pair {index}"

    def identity(self, index: int) -> tuple:
        """Of a pair's ids and label, and of its picture: digest of the bytes, or path, size and time of change."""
        raise NotImplementedError

    def record_unreadable(self, index: int, error: Exception) -> None:
        """Count a picture that could not be decoded; a set without a report raises the error."""
        raise error


class ListedPairs(Pairs):
    """Any indexable collection of pairs, a list or a data set of another library. What of `Pairs` the collection has
    itself holds."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs
        self.background, self.report = (getattr(pairs, name, None) for name in ("background", "report"))
        self.together, self.mirrors = getattr(pairs, "together", 1), getattr(pairs, "mirrors", True)

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether it says so; else whether the first pair has a label."""
        if hasattr(self.pairs, "labelled"):
            return self.pairs.labelled
        return len(self.pairs) > 0 and self.pairs[0].get("label") is not None

    @property
    def lists_texts(self) -> bool:  # type: ignore[override]
        """Whether it has a method for texts."""
        return hasattr(self.pairs, "texts")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs[index]

    def identity(self, index: int) -> tuple:
        """As in `Pairs`; the digest is of the decoded picture."""
        pair = self[index]
        pixels = np.asarray(pair["image"]) if isinstance(pair["image"], Image.Image | np.ndarray) else pair["image"]
        digest = hashlib.blake2b(pixels.tobytes() if isinstance(pixels, np.ndarray) else str(pixels).encode())
        return pair["image_id"], pair.get("label"), np.shape(pixels), digest.hexdigest()

    def texts(self, index: int) -> list[str]:
        """As in `Pairs`."""
        return list(self.pairs.texts(index)) if self.lists_texts else super().texts(index)

    def image_ids(self) -> np.ndarray:
        """As in `Pairs`."""
        return np.asarray(self.pairs.image_ids() if hasattr(self.pairs, "image_ids") else super().image_ids())


def kept_together(indices: Sequence[int] | np.ndarray, together: int) -> int:
    """`together` of the pairs at `indices` of a set: the set's own where these are whole groups in their order, else
    1."""
    rows = np.asarray(indices, dtype=np.int64)
    if len(rows) % together:
        return 1
    groups = rows.reshape(-1, together)
    whole = (groups[:, :1] % together == 0).all() and (groups == groups[:, :1] + np.arange(together)).all()
    return together if whole else 1


def as_pairs(pairs: Any) -> Pairs:
    """A set of pairs, or an indexable collection, as `Pairs`."""
    return pairs if isinstance(pairs, Pairs) else ListedPairs(pairs)


def innermost(pairs: Pairs) -> Pairs:
    """The set that lies within those that change what they give of it."""
    while isinstance(within := getattr(pairs, "pairs", None), Pairs):
        pairs = within
    return pairs


__all__ = ["ListedPairs", "Pairs", "as_pairs", "innermost", "kept_together"]

"""What is evaluated on: a set of pairs as a gallery of distinct pictures and a list of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import load_pairs
from .emoji import DemoPairs
from .named import named_set
from .pair_sets import Pairs
from .streaming import StreamingPairs


class GalleryImages(Sequence[Image.Image]):
    """Pictures of chosen rows of sets of pairs, decoded on access: upright, or with `exif_transpose` False as they are
    stored, and on `background` where the set itself has none (`as_processor_reads` gives those that a processor
    takes)."""

    def __init__(self, places: Sequence[tuple[Pairs, int]]) -> None:
        self.places = list(places)
        self.exif_transpose = True
        self.background: str | tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # a slice would decode them all
        pairs, row = self.places[index]
        return pairs.image(row, None if self.exif_transpose else False, self.background)


@dataclass(frozen=True)
class Gallery:
    """I pictures and T texts.

    Args:
        images: decoded on access.
        image_ids: (I,); pictures of one id count as one.
        texts: (T,).
        text_ids: (T,) for each text the ids of the pictures that it describes.
    """

    images: Sequence[Image.Image]
    image_ids: Sequence[ImageId]
    texts: list[str]
    text_ids: list[list[ImageId]]

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> Gallery:
        """Every picture once, by its id (the first of each); every text of every pair.

        Equal texts stay apart, as in the published evaluations, unless the set itself says that they are one
        (`text_id` of the Chinese-CLIP format, where a text has several pictures). Pictures without a text are part of
        the gallery.

        Raises:
            ValueError: labelled pairs, of which half do not belong together; the demo's pictures by several vendors.
        """
        if pairs.labelled:
            raise ValueError("these are labelled pairs, made for matching: evaluate them with task matching")
        if isinstance(pairs, DemoPairs) and len(pairs.vendors) > 1:
            raise ValueError(
                f"{', '.join(pairs.vendors)} draw the same things, and a gallery holds one picture of each: name one "
                "vendor"
            )
        keys = pairs.keys()
        rows: dict[str, int] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, row)
        places: list[tuple[Pairs, int]] = [(pairs, row) for row in rows.values()]
        image_ids: list[ImageId] = list(rows)
        if pairs.unpaired is not None:
            places += [(pairs.unpaired, row) for row in range(len(pairs.unpaired))]
            image_ids += pairs.unpaired.keys()
        texts: list[str] = []
        text_ids: list[list[ImageId]] = []
        known: dict[str, int] = {}
        for row, (key, identity) in enumerate(zip(keys, pairs.text_keys(), strict=True)):
            if identity is not None and identity in known:
                text_ids[known[identity]].append(key)
                continue
            if identity is not None:
                known[identity] = len(texts)
            own = pairs.texts(row)
            texts += own
            text_ids += [[key] for _ in own]
        return cls(GalleryImages(places), image_ids, texts, text_ids)

    def positives(self) -> Tensor:
        """(T, I) boolean: which texts describe which pictures."""
        return positive_pairs(self.image_ids, self.text_ids)

    def captions(self) -> list[list[str]]:
        """(I,) all texts of every picture."""
        place = {key: number for number, key in enumerate(self.image_ids)}
        found: list[list[str]] = [[] for _ in self.image_ids]
        for text, keys in zip(self.texts, self.text_ids, strict=True):
            for key in keys:
                found[place[key]].append(text)
        return found


def open_pairs(data: str | PathLike, **options: Any) -> Pairs:
    """The pairs that `--data` names, as `load_pairs` takes them; of the package's scenes, the test split where none is
    named.

    Raises:
        ValueError: tar shards, which have no length; or as `load_pairs`.
    """
    name = named_set(data) or ""
    if name.startswith("scenes:") and "/" not in name and options.get("split") is None:
        options["split"] = "test"
    pairs = load_pairs(data, **options)
    if isinstance(pairs, StreamingPairs):
        raise ValueError(
            f"{data} is a stream of shards; evaluation needs a set with a length: unpack the shards, or write them as "
            "Parquet"
        )
    return pairs


def data_hash(pairs: Pairs) -> str:
    """A digest of all that an evaluation reads: ids, texts, labels, and the pictures: their bytes where they are
    embedded, else path, size and time of change of the file."""
    digest = hashlib.blake2b(digest_size=16)
    for part in filter(None, (pairs, pairs.unpaired)):
        for row in range(len(part)):
            digest.update(repr((part.texts(row), *part.identity(row))).encode())
    return digest.hexdigest()


def text_positives(gallery: Gallery) -> np.ndarray:
    """(T, I) boolean as `positives`, equal texts sharing their pictures: what is certainly no negative."""
    owners: dict[str, set[ImageId]] = {}
    for text, keys in zip(gallery.texts, gallery.text_ids, strict=True):
        owners.setdefault(text, set()).update(keys)
    return positive_pairs(gallery.image_ids, [owners[text] for text in gallery.texts]).numpy()


#: Identity of a picture, and of the picture or pictures that a text describes.
ImageId = Hashable


TextId = Hashable | Collection[Hashable]


def positive_pairs(image_ids: Sequence[ImageId], text_ids: Sequence[TextId]) -> Tensor:
    """Which texts describe which pictures.

    Args:
        image_ids: (I,) identity of each picture of the gallery; repeated where several pictures count as one.
        text_ids: (T,) for each text the identity of its picture, or a list, tuple or set of several.

    Returns:
        (T, I) boolean.
    """
    columns: dict[Hashable, list[int]] = {}
    for column, identity in enumerate(_plain(image_ids)):
        columns.setdefault(identity, []).append(column)
    positives = torch.zeros(len(text_ids), len(image_ids), dtype=torch.bool)
    for row, identity in enumerate(_plain(text_ids)):
        identities = identity if isinstance(identity, (list, tuple, set, frozenset)) else (identity,)
        for one in identities:
            positives[row, columns.get(one, [])] = True
    return positives


def _plain(ids: Sequence) -> Sequence:
    """Tensors and arrays as lists, so that 3 and tensor(3) are the same identity."""
    return ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else ids

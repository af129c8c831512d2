"""Saved lists of matching pairs, so that every model is judged on the same ones.

A list is JSON lines: first what it is (`{"matching_pairs": 1, "negatives": "uniform", "seed": 0, …}`), then
`{"image_id": "…", "text": "…", "label": 0}`. It names pictures by id and holds texts as they are, so it belongs to a
data set and says so where it does not fit.

Negatives lie as in FGR's loss: for every text a picture that it does not describe, for every picture a text that
does not describe it. Drawn uniformly most are easy; drawn as FGR does, with probability softmax(cosine / temperature)
of a model over the whole set, they are those that this model finds hard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch

from ..inference.encoding import encode_images, encode_texts
from ..inference.negatives import draw_negatives, similarity_logits
from ..inference.ranker import ranker_of
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.datasets.gallery import Gallery, text_positives
from ..processing.datasets.records import read_label
from ..processing.files.progress import bar
from ..processing.files.writing import write_text

Negatives = Literal["uniform", "fgr"]
_VERSION = 1


@dataclass(frozen=True)
class MatchingPairs:
    """P pairs.

    Args:
        image_ids: (P,).
        texts: (P,).
        labels: (P,) of 0 and 1.
        about: how the list was made.
    """

    image_ids: list[str]
    texts: list[str]
    labels: list[int]
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, path: str | PathLike) -> None:
        """Write the list; folders are made, a list of that name is replaced."""
        rows = [{"matching_pairs": _VERSION, **self.about, "pairs": len(self)}]
        rows += [
            {"image_id": image_id, "text": text, "label": label}
            for image_id, text, label in zip(self.image_ids, self.texts, self.labels, strict=True)
        ]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    @classmethod
    def load(cls, path: str | PathLike) -> MatchingPairs:
        """Read a list.

        Raises:
            ValueError: another kind of file, a malformed line, or lines missing; names file and line.
        """
        with open(path, encoding="utf-8") as file:
            rows = [_parsed(line, path, number) for number, line in enumerate(file, start=1)]
        if not rows or rows[0].get("matching_pairs") != _VERSION:
            raise ValueError(f"{path}:1: not a list of matching pairs; make one with `r2d2 data matching-pairs`")
        about = {name: value for name, value in rows[0].items() if name not in ("matching_pairs", "pairs")}
        for number, row in enumerate(rows[1:], start=2):
            if set(row) != {"image_id", "text", "label"}:
                raise ValueError(f"{path}:{number}: has {sorted(row)}, not image_id, text and label")
            try:
                row["label"] = read_label(row["label"])
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
        if len(rows) - 1 != rows[0].get("pairs"):
            raise ValueError(f"{path}: {len(rows) - 1} pairs, {rows[0].get('pairs')} were written: the file is cut off")
        image_ids, texts, labels = ([row[name] for row in rows[1:]] for name in ("image_id", "text", "label"))
        return cls(image_ids, texts, labels, about)

    def image_index(self, gallery: Gallery) -> list[int]:
        """(P,) the place of every pair's picture in a gallery.

        Raises:
            ValueError: the gallery lacks a picture or has other texts: the list belongs to another data set.
        """
        places = {key: place for place, key in enumerate(gallery.image_ids)}
        texts = set(gallery.texts)
        for number, (key, text) in enumerate(zip(self.image_ids, self.texts, strict=True), start=2):
            missing = f"picture {key!r}" if key not in places else f"text {text!r}" if text not in texts else None
            if missing:
                raise ValueError(f"line {number} of the list names the {missing}, which the data set does not have")
        return [places[key] for key in self.image_ids]


def make_matching_pairs(
    gallery: Gallery,
    negatives: Negatives = "uniform",
    seed: int = 0,
    model: R2D2Model | None = None,
    processor: R2D2Processor | None = None,
    batch_size: int = 32,
) -> MatchingPairs:
    """A list of T true pairs, T of a text with a wrong picture, and one of a wrong text for every picture with texts.

    No pair whose text is also a caption of the picture counts as wrong. Holds a matrix of T × I.

    Args:
        negatives: "uniform", or "fgr": hard ones of `model`, which `processor` belongs to.

    Raises:
        ValueError: "fgr" without a model; a set in which everything belongs together.
    """
    if negatives not in ("uniform", "fgr"):
        raise ValueError(f"negatives is {negatives!r}; use 'uniform' or 'fgr'")
    positives = torch.from_numpy(text_positives(gallery))
    described = positives.any(dim=0)
    if positives.all(dim=1).any() or positives[:, described].all(dim=0).any():
        raise ValueError("there is a text that describes every picture, or a picture that every text describes")
    if negatives == "fgr":
        if model is None or processor is None:
            raise ValueError("negatives as in FGR are drawn by a model: give model and processor")
        images = encode_images(model, processor, gallery.images, batch_size, keep_states=False)
        texts = encode_texts(model, processor, gallery.texts, 8 * batch_size, keep_states=False)
        logits = similarity_logits(model, texts, images)
    else:
        logits = torch.zeros(positives.shape)
    generator = torch.Generator().manual_seed(seed)
    wrong_image = draw_negatives(logits, positives, 1, generator)[:, 0]
    wrong_text = draw_negatives(logits.t()[described], positives.t()[described], 1, generator)[:, 0]
    keys = np.array(gallery.image_ids, dtype=object)
    return MatchingPairs(
        [ids[0] for ids in gallery.text_ids] + keys[wrong_image.numpy()].tolist() + keys[described.numpy()].tolist(),
        [*gallery.texts, *gallery.texts, *(gallery.texts[place] for place in wrong_text.tolist())],
        [1] * len(gallery.texts) + [0] * (len(wrong_image) + len(wrong_text)),
        {"negatives": negatives, "seed": seed},
    )


def pair_probabilities(
    model: R2D2Model,
    processor: R2D2Processor,
    images: Sequence,
    image_index: Sequence[int],
    texts: Sequence[str],
    batch_size: int = 256,
) -> np.ndarray:
    """Match probability of P pairs, however many pictures there are: nothing of the size of all pairs is held.

    Pairs are taken in the order of their picture, so that a picture's pairs share one pass through its tower.

    Args:
        images: pictures, PIL or paths.
        image_index: (P,) into them.
        texts: (P,).
        batch_size: pairs at a time.

    Returns:
        (P,) float64.

    Raises:
        ValueError: a model without a ranker (PRD2).
    """
    ranker = ranker_of(model)
    places = np.asarray(image_index, dtype=np.int64)
    order = np.argsort(places, kind="stable")
    result = np.empty(len(order))
    shown = bar(doing="matching", total=len(order), unit="pairs")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        own_images, image_of_pair = np.unique(places[rows], return_inverse=True)
        own_texts, text_of_pair = np.unique(np.array([texts[row] for row in rows], dtype=object), return_inverse=True)
        encoded_images = encode_images(model, processor, [images[place] for place in own_images.tolist()])
        encoded_texts = encode_texts(model, processor, own_texts.tolist())
        index = torch.from_numpy(text_of_pair), torch.from_numpy(image_of_pair)
        result[rows] = ranker.match_probabilities(encoded_texts, encoded_images, *index).numpy()
        shown.update(len(rows))
    shown.close()
    return result


def _parsed(line: str, path: Any, number: int) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: a JSON {type(row).__name__}, not an object")
    return row

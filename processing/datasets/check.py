"""What is in a data set and what is wrong with it: every picture is decoded, every text counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .images import ImageReadError
from .pairs import PairDataset
from .report import ErrorReport, Problem
from .streaming import StreamingPairs

#: Pictures are drawn on contact sheets at this side or smaller; kept so, they cost little.
_THUMBNAIL = 192


@dataclass(frozen=True)
class Spread:
    """Smallest, quartiles and largest of a quantity, and its mean."""

    least: float
    lower: float
    median: float
    upper: float
    most: float
    mean: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there are no values."""
        numbers = np.fromiter(values, dtype=np.float64)
        if not len(numbers):
            return None
        return cls(*np.percentile(numbers, [0, 25, 50, 75, 100]).tolist(), float(numbers.mean()))


@dataclass
class DataCheck:
    """What `check_pairs` found.

    records: looked at, good or bad. pairs, pictures, texts: good ones; pictures by id. problems: the first bad records
    with file and line; errors: how many in all. duplicates: captions that describe several pictures -> how many.
    widths, heights: pixels, area: megapixels; characters: of a text. labels: how many pairs of each. sample: some
    pictures, made small, with their texts.
    """

    records: int = 0
    pairs: int = 0
    pictures: int = 0
    texts: int = 0
    errors: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)
    widths: Spread | None = None
    heights: Spread | None = None
    area: Spread | None = None
    characters: Spread | None = None
    texts_per_picture: Spread | None = None
    labels: dict[int, int] = field(default_factory=dict)
    sample: list[tuple[Image.Image, str]] = field(default_factory=list, repr=False)

    @property
    def error_rate(self) -> float:
        """Share of the records that is bad."""
        return self.errors / max(self.records, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the sample."""
        values = {name: value for name, value in vars(self).items() if name != "sample"}
        plain = {name: asdict(v) if isinstance(v, Spread) else v for name, v in values.items()}
        return {**plain, "problems": [asdict(problem) for problem in self.problems], "error_rate": self.error_rate}


def check_pairs(pairs: PairDataset | StreamingPairs, sample: int = 24, seed: int = 0) -> DataCheck:
    """Read the whole set once: decode every picture, measure pictures and texts, count duplicates.

    A caption is a duplicate if it stands with pictures of different ids: in contrastive training such pairs are each
    other's negatives unless they share an id. Labelled pairs repeat captions by design; theirs are counted among
    matching pairs alone.

    Args:
        pairs: read with `max_error_rate=1.0`, so that errors are counted and do not stop.
        sample: how many pictures to keep for a contact sheet, drawn evenly over the whole set.
    """
    generator = np.random.default_rng(seed)
    owners: dict[str, set[str]] = {}
    per_picture: Counter[str] = Counter()
    sizes: dict[str, tuple[int, int]] = {}
    lengths: list[int] = []
    found = DataCheck()
    labels: Counter[int] = Counter()
    for place, (image, texts, key, label) in enumerate(_samples(pairs)):
        found.pairs += 1
        sizes.setdefault(key, image.size)
        per_picture[key] += len(texts)
        lengths += map(len, texts)
        if label is not None:
            labels[label] += 1
        if label != 0:
            for text in texts:
                owners.setdefault(text, set()).add(key)
        slot = place if place < sample else int(generator.integers(place + 1))  # reservoir sampling
        if slot < sample:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            found.sample[slot : slot + 1] = [(image, texts[0])]
    report: ErrorReport = pairs.report
    found.records, found.errors = report.seen, report.errors
    found.problems = report.problems + report.access_problems
    found.notes = list(report.notes)
    found.pictures, found.texts = len(sizes), len(lengths)
    shared = {text: len(keys) for text, keys in owners.items() if len(keys) > 1}
    found.duplicates = dict(sorted(shared.items(), key=lambda item: (-item[1], item[0])))
    found.widths, found.heights = (Spread.of(size[side] for size in sizes.values()) for side in (0, 1))
    found.area = Spread.of(width * height / 1e6 for width, height in sizes.values())
    found.characters = Spread.of(lengths)
    found.texts_per_picture = Spread.of(per_picture.values())
    found.labels = dict(sorted(labels.items()))
    return found


def _samples(pairs: PairDataset | StreamingPairs) -> Iterator[tuple[Image.Image, list[str], str, int | None]]:
    if isinstance(pairs, StreamingPairs):
        for item in pairs:
            texts = [item["text"]] if isinstance(item["text"], str) else item["text"]
            yield item["image"], texts, item["image_id"], item.get("label")
        return
    keys = pairs.keys()
    labels = pairs.labels().tolist() if pairs.labelled else [None] * len(pairs)
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        try:
            image = pairs.image(row)
        except ImageReadError as error:
            pairs.record_unreadable(row, error)
            continue
        yield image, pairs.texts(row), key, label

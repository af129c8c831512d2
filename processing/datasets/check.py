"""What is in a data set and what is wrong with it: every picture is decoded, every text counted."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..files.images import ImageReadError
from ..files.progress import bar
from .emoji import DemoPairs
from .pairs import PairDataset
from .report import ErrorReport, Problem
from .streaming import StreamingPairs

#: Longer captions are told: of the authors' texts none is, and models read some dozens of characters.
LONG_TEXT = 1000
#: How many examples of each kind of remark are kept.
_EXAMPLES = 5
#: Control, zero-width, direction and private characters, and the mark of a failed decoding. Not: line ends, tabs, and
#: the joiner within an emoji.
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffd\ue000-\uf8ff]|\u200d(?![\u2600-\u27bf\U0001f000-\U0001faff])"
)
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
        return cls(*[*np.percentile(numbers, [0, 25, 50, 75, 100]).tolist(), float(numbers.mean())])


@dataclass
class DataCheck:
    """What `check_pairs` found.

    Args:
        records: looked at, good or bad.
        pairs: good ones.
        images: good ones, by id.
        texts: good ones.
        problems: the first bad records with file and line.
        errors: how many in all.
        duplicates: captions that describe several pictures -> how many.
        widths: in pixels.
        heights: in pixels.
        area: in megapixels.
        same_images: pictures whose decoded pixels are those of another id's.
        characters: of a text.
        labels: how many pairs of each.
        same_pairs: pairs with the pixels and the text of an earlier one.
        contradictions: those among them with another label.
        long_texts: captions of more than `LONG_TEXT` characters.
        odd_texts: captions with control, invisible or private characters.
        odd_characters: in how many captions each is.
        remarks: the first of each of these, with their places.
        sample: some pictures, made small, with their texts.
    """

    records: int = 0
    pairs: int = 0
    images: int = 0
    texts: int = 0
    errors: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)
    widths: Spread | None = None
    heights: Spread | None = None
    area: Spread | None = None
    characters: Spread | None = None
    texts_per_image: Spread | None = None
    labels: dict[int, int] = field(default_factory=dict)
    same_images: int = 0
    same_pairs: int = 0
    contradictions: int = 0
    long_texts: int = 0
    odd_texts: int = 0
    odd_characters: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
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


def check_pairs(pairs: PairDataset | DemoPairs | StreamingPairs, sample: int = 24, seed: int = 0) -> DataCheck:
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
    per_image: Counter[str] = Counter()
    sizes: dict[str, tuple[int, int]] = {}
    lengths: list[int] = []
    found = DataCheck()
    labels: Counter[int] = Counter()
    remarks = _Remarks(found)
    total = None if isinstance(pairs, StreamingPairs) else len(pairs)
    samples = bar(_samples(pairs), "checking", total, unit="pairs")
    for place, (image, texts, key, label, location) in enumerate(samples):
        found.pairs += 1
        remarks.look_at(image, texts, key, label, location)
        sizes.setdefault(key, image.size)
        per_image[key] += len(texts)
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
    found.images, found.texts = len(sizes), len(lengths)
    shared = {text: len(keys) for text, keys in owners.items() if len(keys) > 1}
    found.duplicates = dict(sorted(shared.items(), key=lambda item: (-item[1], item[0])))
    found.widths, found.heights = (Spread.of(size[side] for size in sizes.values()) for side in (0, 1))
    found.area = Spread.of(width * height / 1e6 for width, height in sizes.values())
    found.characters = Spread.of(lengths)
    found.texts_per_image = Spread.of(per_image.values())
    found.labels = dict(sorted(labels.items()))
    return found


class _Remarks:
    """What is no error and yet worth a look, counted into a `DataCheck`, with the first few examples of each kind."""

    def __init__(self, found: DataCheck) -> None:
        self.found = found
        self._images: dict[bytes, tuple[str, str]] = {}  # pixels -> id, place
        self._same: set[str] = set()
        self._pairs: dict[bytes, tuple[int | None, str]] = {}  # pixels and text -> label, place
        self._examples: Counter[str] = Counter()

    def look_at(self, image: Image.Image, texts: list[str], key: str, label: int | None, location: str) -> None:
        digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
        digest.update(image.tobytes())
        pixels = digest.digest()
        other, place = self._images.setdefault(pixels, (key, location))
        if other != key and key not in self._same:
            self._same.add(key)
            self.found.same_images += 1
            self._remark("same picture", f"{location}: {key} has the same pixels as {other} ({place})")
        for text in texts:
            self._look_at_pair(pixels, text, label, location)
            self._look_at_text(text, location)

    def _look_at_pair(self, pixels: bytes, text: str, label: int | None, location: str) -> None:
        pair = hashlib.blake2b(pixels + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if pair not in self._pairs:
            self._pairs[pair] = (label, location)
            return
        first, place = self._pairs[pair]
        self.found.same_pairs += 1
        if first == label:
            self._remark("same pair", f"{location}: the same picture and text as in {place}: {text[:20]}")
        else:
            self.found.contradictions += 1
            self._remark("contradiction", f"{location}: labelled {label}, and {first} in {place}: {text[:20]}")

    def _look_at_text(self, text: str, location: str) -> None:
        if len(text) > LONG_TEXT:
            self.found.long_texts += 1
            self._remark("long", f"{location}: a caption of {len(text):,} characters: {text[:20]}…")
        if odd := set(_ODD.findall(text)):
            self.found.odd_texts += 1
            names = sorted(map(_character, odd))
            for name in names:
                self.found.odd_characters[name] = self.found.odd_characters.get(name, 0) + 1
            self._remark("odd", f"{location}: holds {', '.join(names[:5])}: {_ODD.sub('·', text)[:20]}")

    def _remark(self, kind: str, text: str) -> None:
        self._examples[kind] += 1
        if self._examples[kind] <= _EXAMPLES:
            self.found.remarks.append(text)


def _character(char: str) -> str:
    name = unicodedata.name(char, "")
    return f"U+{ord(char):04X}{name and f' {name}'}"


def _samples(
    pairs: PairDataset | DemoPairs | StreamingPairs,
) -> Iterator[tuple[Image.Image, list[str], str, int | None, str]]:
    if isinstance(pairs, StreamingPairs):
        for item in pairs:
            texts = [item["text"]] if isinstance(item["text"], str) else item["text"]
            yield item["image"], texts, item["image_id"], item.get("label"), item["location"]
        return
    keys = pairs.keys()
    labels = pairs.labels().tolist() if pairs.labelled else [None] * len(pairs)
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        try:
            image = pairs.image(row)
        except ImageReadError as error:
            pairs.record_unreadable(row, error)
            continue
        yield image, pairs.texts(row), key, label, pairs.location(row)

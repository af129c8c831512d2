"""Samples and batches of the fine-tuning tasks, on the stateless stream of pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..processing.collation import PretrainingDataset, R2D2PretrainingCollator, SampleEncoder
from ..processing.datasets.pair_sets import Pairs, as_pairs
from ..processing.datasets.records import stable_id
from ..processing.masking import IGNORE_INDEX

MAX_DRAWS = 100


class TextIdEncoder(SampleEncoder):
    """`SampleEncoder` that also tells which caption a sample carries: `text_ids`."""

    def __call__(self, pair: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """As `SampleEncoder`, plus `text_ids` and, where the pair has one, `labels`."""
        text = pair["text"]
        if not isinstance(text, str):
            text = text[0 if self.first_text else int(rng.integers(len(text)))]
        sample = super().__call__({**pair, "text": text}, rng)
        sample["text_ids"] = stable_id(text)
        if pair.get("label") is not None:
            sample["labels"] = int(pair["label"])
        return sample


class FinetuningDataset(PretrainingDataset):
    """`PretrainingDataset` whose samples carry `text_ids` and the pair's `label`, for retrieval and captions."""

    def __init__(self, pairs: Any, processor: Any, augmentation: Any = None, **kwargs: Any) -> None:
        super().__init__(pairs, processor, augmentation, **kwargs)
        self.encode = TextIdEncoder(processor, augmentation, first_text=not self.shuffle)


class MatchingDataset(FinetuningDataset):
    """Pairs with labels (1 = match). Where the pairs have none, they are true ones: half of the samples then get the
    text of another pair, drawn uniformly, and are negatives (training); evaluation takes `UniformNegatives`."""

    def _load(self, index: int) -> dict[str, Any]:
        pair = super()._load(index)
        return {**pair, "place": index}

    def _sample(self, position: int) -> dict[str, Any]:
        number, place = divmod(position, len(self.pairs))
        index = int(self.permutation(number)[place]) if self.shuffle else place
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.epoch, position))))
        pair = self._read(index)
        if pair.get("label") is None:
            label = int(rng.integers(2))
            if label == 0:
                pair = {**pair, "text": draw_other_text(self.pairs, pair["place"], self.image_ids(), rng)}
            pair = {**pair, "label": label}
        return self.encode(pair, rng)


def draw_other_text(pairs: Pairs, index: int, image_ids: np.ndarray, rng: np.random.Generator) -> str:
    """A text, drawn uniformly over the pairs, of another picture, that is not among the pair's own.

    Raises:
        ValueError: none was found in 100 draws: the pairs have hardly any other text.
    """
    own = set(pairs.texts(index))
    for _ in range(MAX_DRAWS):
        other = int(rng.integers(len(image_ids)))
        if image_ids[other] == image_ids[index]:
            continue
        texts = pairs.texts(other)
        text = texts[int(rng.integers(len(texts)))]
        if text not in own:
            return text
    raise ValueError(
        f"no negative text for pair {index} in {MAX_DRAWS} draws: nearly all pairs have its picture or its caption; "
        "give labelled pairs (1 or 0 in a column that --label names)"
    )


class UniformNegatives(Pairs):
    """Labelled pairs made of true ones, the same every time: each pair once as it is (its first text, label 1) and
    once with a text of another picture, drawn uniformly (label 0)."""

    def __init__(self, pairs: Any, image_ids: np.ndarray, seed: int = 0) -> None:
        rng = np.random.default_rng((seed, len(pairs)))
        self.pairs = pairs = as_pairs(pairs)
        self._ids = image_ids
        self.negatives = [draw_other_text(pairs, index, image_ids, rng) for index in range(len(pairs))]

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image", "text", "image_id", "label"}."""
        pair = self.pairs[index % len(self.pairs)]
        return {**pair, "text": self.texts(index)[0], "label": int(index < len(self.pairs))}

    def record_unreadable(self, index: int, error: Exception) -> None:
        """Count a broken picture in the pairs' own report."""
        self.pairs.record_unreadable(index % len(self.pairs), error)

    def texts(self, index: int) -> list[str]:
        """The one text of a labelled pair."""
        true = index < len(self.pairs)
        return self.pairs.texts(index)[:1] if true else [self.negatives[index - len(self.pairs)]]

    def image_ids(self) -> np.ndarray:
        """(2N,) int64."""
        return np.concatenate([self._ids, self._ids])


class ClassPairs(Pairs):
    """Pairs with the number of their class: the first text is its name.

    Raises:
        ValueError: a text that is no class, on the first such pair.
    """

    def __init__(self, pairs: Any, names: Sequence[str]) -> None:
        self.pairs, self.names = as_pairs(pairs), list(names)
        numbers = {name: number for number, name in enumerate(self.names)}
        self._labels = []
        for index, name in enumerate(self.pairs.first_texts()):
            if name not in numbers:
                where = self.pairs.location(index)
                raise ValueError(f"{where}: {name!r} is not one of the {len(self.names)} classes")
            self._labels.append(numbers[name])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pair, with `label`."""
        return {**self.pairs[index], "label": self._labels[index]}

    def texts(self, index: int) -> list[str]:
        """Of the pair."""
        return self.pairs.texts(index)

    def image_ids(self) -> np.ndarray:
        """Of the pairs."""
        return self.pairs.image_ids()

    def location(self, index: int) -> str:
        """Of the pair."""
        return self.pairs.location(index)

    def record_unreadable(self, index: int, error: Exception) -> None:
        """In the pairs' own report."""
        self.pairs.record_unreadable(index, error)


def class_names(pairs: Any) -> list[str]:
    """The classes of a set of pairs: its different first texts, sorted."""
    return sorted(set(as_pairs(pairs).first_texts()))


class FinetuningCollator(R2D2PretrainingCollator):
    """Encoded samples -> the batch that the model of a task takes.

    | task | beside `pixel_values` (B, 3, H, W) |
    |---|---|
    | retrieval | `input_ids`, `attention_mask` (B, L), `return_loss`, `image_ids` and maybe `text_ids` (B,) |
    | matching | `input_ids`, `attention_mask`, `labels` (B,) |
    | caption | `input_ids`, `attention_mask`, `labels` (B, L): the tokens, -100 where there is padding |
    | classification | `labels` (B,) |
    """

    def __init__(self, processor: Any, task: str, multi_positive: bool = True, channels_last: bool = False) -> None:
        super().__init__(processor, channels_last)
        self.task, self.multi_positive = task, multi_positive

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(samples)
        if self.task == "retrieval":
            if self.multi_positive:
                batch["text_ids"] = torch.tensor([sample["text_ids"] for sample in samples])
            return batch
        for name in ("image_ids", "return_loss"):
            del batch[name]
        if self.task == "caption":
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        else:
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
        if self.task == "classification":
            del batch["input_ids"], batch["attention_mask"]
        return batch


__all__ = [
    "ClassPairs",
    "FinetuningCollator",
    "FinetuningDataset",
    "MatchingDataset",
    "UniformNegatives",
    "class_names",
    "draw_other_text",
]

"""What a fine-tuning run is about to do, and what makes small runs fail, said before it starts."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..processing.datasets import PairDataset
from ..processing.datasets.pair_sets import as_pairs, innermost
from .parameters import plain_name
from .settings import FinetuningSettings

#: More texts than this are judged by a sample, evenly spaced.
SAMPLED_TEXTS = 20_000
SMALL_BATCH = 16
FEW_STEPS = 100
UNKNOWN_SHARE = 0.01


@dataclass(frozen=True)
class DataSummary:
    """Counts of a set of pairs: pairs, different pictures, texts (looked at), different texts, the largest number of
    pairs with one text, the share of tokens that the tokenizer does not know, and an example of such a text.

    Args:
        labelled: whether the pairs say if they match.
        matching: how many of labelled ones do.
    """

    pairs: int
    images: int
    texts: int
    distinct_texts: int
    most_repeated: int
    unknown_share: float
    unknown_example: str | None
    labelled: bool = False
    matching: int | None = None


@dataclass(frozen=True)
class FinetuningReport:
    """What will be trained, on how much, and warnings.

    Args:
        trainable: part of the model -> number of parameters.
        frozen: part of the model -> number of parameters.
        data: counts of the training pairs.
        batch: pairs of a step, of all workers.
        method: whole weights, or which adapters.
    """

    task: str
    trainable: dict[str, int]
    frozen: dict[str, int]
    data: DataSummary
    validation_pairs: int
    batch: int
    steps_per_epoch: int
    epochs: int
    method: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as it is printed."""
        trainable, frozen = sum(self.trainable.values()), sum(self.frozen.values())
        share = 100 * trainable / max(trainable + frozen, 1)
        data = self.data
        lines = [
            f"{self.task}, {self.method}: {trainable:,} of {trainable + frozen:,} parameters train ({share:.1f} %)",
            "  trains: " + _listed(self.trainable),
        ]
        if frozen:
            lines.append("  frozen: " + _listed(self.frozen))
        lines.append(
            f"  data: {data.pairs:,} pairs of {data.images:,} pictures, {data.distinct_texts:,} different texts in "
            f"{data.texts:,}; validation: {self.validation_pairs:,} pairs"
        )
        if self.task == "matching":
            lines.append(
                f"  labels: {data.matching:,} of {data.pairs:,} pairs match"
                if data.labelled
                else "  labels: none, so every pair counts as true, and half of them get another picture's text"
            )
        lines.append(
            f"  run: {self.epochs} epochs of {self.steps_per_epoch} steps of {self.batch} pairs "
            f"({self.epochs * self.steps_per_epoch:,} steps)"
        )
        return [*lines, *(f"  ! {warning}" for warning in self.warnings)]


def summarise(pairs: Any, image_ids: np.ndarray, tokenizer: Any) -> DataSummary:
    """Count a set of pairs without opening its pictures; texts are those of at most 20,000 pairs."""
    pairs = as_pairs(pairs)
    places = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLED_TEXTS)).astype(int))
    texts = [text for place in places for text in pairs.texts(int(place))]
    counts = Counter(texts)
    unknown = tokens = 0
    example = None
    for text, ids in zip(counts, tokenizer(list(counts), truncation=True)["input_ids"], strict=True):
        missing = ids.count(tokenizer.unk_token_id)
        unknown += missing * counts[text]
        tokens += len(ids) * counts[text]
        example = example or (text if missing else None)
    return DataSummary(
        pairs=len(pairs),
        images=len(np.unique(image_ids)),
        texts=len(texts),
        distinct_texts=len(counts),
        most_repeated=max(counts.values()),
        unknown_share=unknown / tokens,
        unknown_example=example,
        labelled=pairs.labelled,
        matching=int(pairs.labels().sum()) if pairs.labelled else None,
    )


def false_negatives(pairs: Any, image_ids: np.ndarray, batch: int, batches: int = 50, seed: int = 0) -> float:
    """How many of a pair's batch neighbours have its caption but another picture, on average over random batches: what
    counts as a negative, wrongly, where captions are not looked at."""
    pairs = as_pairs(pairs)
    rng = np.random.default_rng(seed)
    found = seen = 0
    for _ in range(batches):
        rows = rng.permutation(len(pairs))[:batch]
        texts = np.array([pairs.texts(int(row))[0] for row in rows])
        ids = image_ids[rows]
        found += int(((texts[:, None] == texts[None]) & (ids[:, None] != ids[None])).sum())
        seen += len(rows)
    return found / seen


def make_report(
    model: nn.Module,
    processor: Any,
    pairs: Any,
    image_ids: np.ndarray,
    settings: FinetuningSettings,
    steps_per_epoch: int,
    workers: int,
    validation: Any | None = None,
) -> FinetuningReport:
    """Look at model, data and settings.

    Args:
        workers: processes that share a batch.
        validation: the pairs that the run is judged by.
    """
    validation_pairs = 0 if validation is None else len(validation)
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * workers
    data = summarise(pairs, image_ids, processor.tokenizer)
    warnings = list(_data_warnings(pairs, image_ids, data, settings, workers))
    warnings += _run_warnings(model, settings, steps_per_epoch, workers, validation_pairs)
    if validation_pairs and (seen := trained_on(pairs, validation)):
        warnings.append(
            f"{seen:,} of {validation_pairs:,} validation pairs show pictures that are trained on: they tell "
            "nothing of others (--validation-share sets pictures aside)"
        )
    return FinetuningReport(
        task=settings.task,
        trainable=_by_part(model, trains=True),
        frozen=_by_part(model, trains=False),
        data=data,
        validation_pairs=validation_pairs,
        batch=batch,
        steps_per_epoch=steps_per_epoch,
        epochs=settings.num_train_epochs,
        method=_method(settings),
        warnings=tuple(warnings),
    )


def trained_on(pairs: Any, validation: Any) -> int:
    """How many validation pairs show a training picture: of the same file or, where pictures lie in tables and
    archives, of the same id and the same bytes. 0 for sets that are no `PairDataset`."""
    pairs, validation = innermost(pairs), innermost(validation)
    if not (isinstance(pairs, PairDataset) and isinstance(validation, PairDataset)):
        return 0
    folder = cache(os.path.realpath)

    def known_by(of: Any) -> list[tuple[str, ...]]:
        """The file of every pair's picture; the id of one that has no file of its own."""
        places = (None if path is None else os.path.split(path) for path in of.table.column("image").to_pylist())
        return [
            (key,) if place is None else (folder(place[0] or "."), place[1])
            for key, place in zip(of.keys(), places, strict=True)
        ]

    wanted = known_by(validation)
    sought = set(wanted)
    rows = {place: row for row, place in enumerate(known_by(pairs)) if place in sought}
    return sum(
        place in rows and (len(place) > 1 or pairs.record(rows[place])["image"] == validation.record(row)["image"])
        for row, place in enumerate(wanted)
    )


def _method(settings: FinetuningSettings) -> str:
    if settings.lora is None:
        return "whole weights"
    return f"{'DoRA' if settings.lora.dora else 'LoRA'} of rank {settings.lora.rank}"


def _data_warnings(
    pairs: Any, image_ids: np.ndarray, data: DataSummary, settings: FinetuningSettings, workers: int
) -> list[str]:
    warnings = []
    compared = settings.per_device_train_batch_size * workers
    if settings.task == "retrieval" and not settings.multi_positive:
        wrong = false_negatives(pairs, image_ids, min(compared, len(pairs)))
        if wrong > 0:
            warnings.append(
                f"a pair meets {wrong:.2f} others of the same caption in a batch, and they count as negatives: leave "
                "multi_positive on"
            )
    if settings.task == "retrieval" and compared > data.images:
        warnings.append(
            f"a batch of {compared} pairs holds repeated pictures, for there are only {data.images}: a smaller batch "
            "has the same negatives"
        )
    if data.unknown_share > UNKNOWN_SHARE:
        warnings.append(
            f"{100 * data.unknown_share:.1f} % of the text tokens are unknown to the tokenizer, as in "
            f"{data.unknown_example!r}: different texts may look the same"
        )
    return warnings


def _run_warnings(
    model: nn.Module, settings: FinetuningSettings, steps_per_epoch: int, workers: int, validation_pairs: int
) -> list[str]:
    warnings, steps = [], settings.num_train_epochs * steps_per_epoch
    compared = settings.per_device_train_batch_size * workers
    if settings.task == "retrieval":
        if compared < SMALL_BATCH:
            more = " (gradient accumulation adds no negatives)" if settings.gradient_accumulation_steps > 1 else ""
            warnings.append(f"only {compared} pairs are compared at a time: few negatives{more}; raise batch_size")
        temperature = [p for name, p in model.named_parameters() if plain_name(name) == "temperature"]
        if temperature and not temperature[0].requires_grad:
            warnings.append(
                "the temperature is frozen: unless it fits these data already, the softmax is too sharp or too flat"
            )
    if steps <= (warmup := settings.warmup_of(steps)):
        warnings.append(
            f"the run ends after {steps} steps, within the {warmup} warm-up steps; the published ones are made for "
            "large sets: the full learning rate is never reached (the preset 'small' suits, or --warmup-steps 0.1)"
        )
    elif steps < FEW_STEPS:
        warnings.append(f"{steps} steps are few: more epochs, or a smaller batch")
    if settings.patience and not validation_pairs:
        warnings.append("no validation pairs: nothing can stop early, and the last weights are kept, not the best")
    return warnings


def _by_part(model: nn.Module, trains: bool) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad == trains:
            sizes[plain_name(name).split(".")[0]] += parameter.numel()
    return dict(sizes)


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))


def check_splits(
    train: str,
    validation: str | None,
    test: Sequence[str] = (),
    train_split: str | None = None,
    validation_split: str | None = None,
) -> None:
    """Early stopping must not see the test split.

    Args:
        train: what is read, a file or a folder.
        validation: the same.
        test: the same.
        train_split: which split of it; None: it has one alone, or the reader chooses.
        validation_split: the same.

    Raises:
        ValueError: the validation data are the training data, are among the test data, or say by their name that they
            are a test split.
    """
    if validation is None:
        return
    path, split = Path(validation).resolve(), validation_split
    if path == Path(train).resolve() and (train_split == split or None in (train_split, split)):
        unnamed = "" if train_split == split else "; name the split of both"
        raise ValueError(f"the validation data are the training data: {validation}{unnamed}")
    tests = [Path(name).resolve() for name in test]
    if path in tests or (split is not None and path / split in tests):
        raise ValueError(f"the validation data are test data: {validation}; choose by a validation split")
    words = (split or Path(validation).stem).lower().replace("-", "_").split("_")
    if "test" in words or path.parent.name.lower() == "test":
        raise ValueError(
            f"{split or validation} is a test split by its name: a model chosen by it has seen the test. Give a "
            "validation split, or --validation-share to set some of the training pairs aside"
        )


__all__ = [
    "DataSummary",
    "FinetuningReport",
    "check_splits",
    "false_negatives",
    "make_report",
    "summarise",
    "trained_on",
]

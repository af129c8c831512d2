"""One runner for all tasks: several models on one data set, each result kept by what it depends on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from ..inference.bootstrap import Bootstrap, weighted_means
from ..inference.finite import to_json
from ..inference.folders import read_json_object
from ..inference.identity import identity_of_folder
from ..inference.matching import matching_metrics
from ..inference.recall import first_hit_ranks
from ..inference.scoring import SCORE_RULES
from ..model.image_classification_r2d2 import R2D2ForImageClassification
from ..processing.datasets.gallery import Gallery, GalleryImages, Pairs, data_hash, open_pairs
from ..processing.datasets.json_records import read_json_objects
from ..processing.datasets.report import Problem
from ..processing.files.digests import digest_of_file
from ..processing.files.images import as_processor_reads
from ..processing.files.progress import bar
from ..processing.files.writing import write_text
from .captioning import captioning_metrics
from .classifier import classifier_scores
from .matching_pairs import MatchingPairs, pair_probabilities
from .models import load_model
from .results import EvaluationResult
from .retrieval import score_both_ways
from .settings import EvaluationSettings
from .zero_shot import ClassificationSet, classification_folder, classification_metrics, classification_pairs
from .zero_shot import classify as classify_images

#: Part of every cache key: raise it when a metric changes its value.
_VERSION = 3
Metrics = tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]

#: Options of `load_pairs` that a folder of classes has too.
_OF_FOLDERS = ("max_error_rate", "encoding", "on_error", "check_images")


def _split_of(folder: Path, reading: dict[str, Any]) -> Path:
    """The folder of classes, or its sub-folder of the split.

    Raises:
        ValueError: what only lists of pairs have.
        FileNotFoundError: no such sub-folder.
    """
    for name, option in (("image_root", "--image-root"), ("columns", "--label")):
        if reading.get(name) is not None:
            raise ValueError(f"{option} belongs to lists of pairs; {folder} is a folder of classes")
    if (split := reading.get("split")) is None:
        return folder
    if not (folder / split).is_dir():
        raise FileNotFoundError(f"{folder} has no folder of the split {split!r}")
    return folder / split


class Evaluation:
    """A data set opened once for any number of models.

    Attributes:
        classes: what classification reads.
        pairs: what the other tasks read, and classification of pairs.

    Raises:
        ValueError, FileNotFoundError, DataRefusedError: data that do not fit the task, or as `load_pairs`.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        self.classes: ClassificationSet
        self.pairs: Pairs
        folder = Path(settings.data)
        if settings.task == "classification" and folder.is_dir() and not settings.reading.get("format"):
            reading = {name: settings.reading[name] for name in _OF_FOLDERS if name in settings.reading}
            self.classes = classification_folder(_split_of(folder, settings.reading), settings.labels, **reading)
            stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in cast(list[Path], self.classes.images)]
            self.data_hash = hashlib.blake2b(repr(stats).encode(), digest_size=16).hexdigest()
            return
        self.pairs = open_pairs(settings.data, **settings.reading)
        self.data_hash = data_hash(self.pairs)
        if settings.task == "classification":
            if settings.labels is not None:
                raise ValueError("labels name the sub-folders of a folder of classes; pairs carry their class as text")
            self.classes = classification_pairs(self.pairs)

    def run(self, model: Any, processor: Any) -> Metrics:
        """Metrics, intervals and counts of one model; `model` is None where a file of captions is judged.

        Raises:
            ValueError: a model that cannot do the task.
        """
        tasks: dict[str, Callable[[Any, Any], Metrics]] = {
            "retrieval": self._retrieval,
            "matching": self._matching,
            "classification": self._classification,
            "captioning": self._captioning,
        }
        return tasks[self.settings.task](model, processor)

    def _retrieval(self, model: Any, processor: Any) -> Metrics:
        settings, gallery = self.settings, Gallery.from_pairs(self.pairs)
        scores = score_both_ways(
            model, processor, gallery.images, gallery.texts, settings.candidates, settings.batch_size, settings.score
        )
        stages: dict[str, tuple[torch.Tensor, torch.Tensor]] = {"pre_ranking": (scores.cosine, scores.image_to_text)}
        if scores.score is not None:
            for rule in SCORE_RULES:
                stage = "two_stage" if rule == scores.score.rule else f"two_stage_{rule}"
                stages[stage] = scores.two_stage(rule)
        metrics: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for stage, both in sorted(stages.items()):
            found, ends = recalls_with_intervals(*both, gallery.positives(), settings.ks, settings.bootstrap)
            metrics |= {f"{stage}.{name}": value for name, value in found.items()}
            intervals |= {f"{stage}.{name}": value for name, value in ends.items()}
        return metrics, intervals, {"pictures": len(gallery.images), "texts": len(gallery.texts)}

    def _matching(self, model: Any, processor: Any) -> Metrics:
        settings, pairs = self.settings, self.pairs
        if settings.pairs is not None:
            listed, gallery = MatchingPairs.load(settings.pairs), Gallery.from_pairs(pairs)
            images, texts, labels = gallery.images, listed.texts, listed.labels
            index = listed.image_index(gallery)
        elif pairs.labelled:
            places: dict[str, int] = {}
            rows: list[int] = []
            index, texts, labels = [], [], []
            for row, (key, label) in enumerate(zip(pairs.keys(), pairs.labels().tolist(), strict=True)):
                if key not in places:
                    places[key] = len(rows)
                    rows.append(row)
                own = pairs.texts(row)
                index += [places[key]] * len(own)
                texts += own
                labels += [label] * len(own)
            images = GalleryImages([(pairs, row) for row in rows])
        else:
            raise ValueError(
                f"{settings.data} has no labels: give a saved list with --pairs (`r2d2 data matching-pairs` makes "
                "one), a set of labelled pairs (ICM, IQM), or name the column of labels (--label)"
            )
        scores = pair_probabilities(model, processor, images, index, texts, 8 * settings.batch_size)
        metrics, intervals = matching_metrics(scores, labels, settings.bootstrap)
        return metrics, intervals, {"matching pairs": sum(labels), "others": len(labels) - sum(labels)}

    def _classification(self, model: Any, processor: Any) -> Metrics:
        data, settings = self.classes, self.settings
        counts = {"pictures": len(data.images), "classes": len(data.names)}
        if isinstance(model, R2D2ForImageClassification):
            scores, labels = classifier_scores(model, processor, data, settings.batch_size)
            counts["classes of the classifier"] = scores.shape[1]
        else:
            scores, labels = (
                classify_images(model, processor, data, settings.prompts, settings.batch_size),
                data.labels,
            )
            counts["prompts"] = len(settings.prompts)
        metrics, intervals = classification_metrics(scores, labels, settings.bootstrap)
        return metrics, intervals, counts

    def _captioning(self, model: Any, processor: Any) -> Metrics:
        gallery = Gallery.from_pairs(self.pairs)
        references = gallery.captions()
        described = [place for place, texts in enumerate(references) if texts]
        if self.settings.captions is not None:
            captions = read_captions(self.settings.captions, [str(gallery.image_ids[place]) for place in described])
        else:
            assert isinstance(gallery.images, GalleryImages)  # as of all pairs
            images = GalleryImages([gallery.images.places[place] for place in described])
            captions = generate_captions(model, processor, images, self.settings)
        references = [references[place] for place in described]
        metrics, intervals = captioning_metrics(captions, references, self.settings.bootstrap)
        return metrics, intervals, {"pictures": len(captions), "references": sum(map(len, references))}


def evaluate_models(
    settings: EvaluationSettings,
    models: Sequence[str | PathLike],
    cache: str | PathLike | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[EvaluationResult]:
    """Evaluate models one after another, or a file of captions (`settings.captions`, no models).

    Args:
        models: folders, or names of the Hub.
        cache: folder where results are kept by task, settings, and the digests of data and model; None: keep none.
        report: told, a line each, what is done.

    Raises:
        ValueError: no model, or a model or data that do not fit the task.
    """
    if settings.captions is not None:
        if models:
            raise ValueError("give captions to judge, or models to write them, not both")
        models = [str(settings.captions)]
    if not models:
        raise ValueError("there is no model to evaluate: name one with --model")
    evaluation = Evaluation(settings)
    results = []
    for place in map(str, models):
        digest = digest_of_file(settings.captions) if settings.captions else identity_of_folder(place)
        key = _cache_key(settings, evaluation.data_hash, digest)
        kept = None if cache is None or digest is None else Path(cache) / f"{key}.json"
        if kept is not None and kept.is_file():
            found = _kept_result(kept)
            if found is not None:
                report(f"{place}: kept result {kept}")
                results.append(replace(found, model=_model_name(place), data=settings.data_name))
                continue
            report(f"{place}: the kept result {kept} is torn: it is computed again")
        report(f"{place}: {settings.task} on {settings.data_name}")
        started = time.perf_counter()
        network, processor = (None, None) if settings.captions else load_model(place, settings)
        metrics, intervals, counts = evaluation.run(network, processor)
        result = EvaluationResult(
            task=settings.task,
            data=settings.data_name,
            model=_model_name(place),
            metrics=metrics,
            intervals=intervals,
            counts=counts,
            settings=settings.described(network),
            data_hash=evaluation.data_hash,
            model_hash=digest,
            seconds=round(time.perf_counter() - started, 2),
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
        )
        if kept is not None:
            write_text(kept, to_json(result.to_dict(), kept))
        results.append(result)
    return results


def recalls_with_intervals(
    text_to_image: torch.Tensor,
    image_to_text: torch.Tensor,
    positives: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
    bootstrap: Bootstrap | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Recall@K both ways in percent, as `recall_both_ways`, with intervals.

    A picture without a text is in the gallery and no query. Resampled are pictures with their texts, since captions
    of one picture are not independent; a text of several pictures goes with the first.

    Args:
        text_to_image: (T, I).
        image_to_text: (I, T).
        positives: (T, I) boolean.
    """
    described = positives.any(dim=0)
    ranks = {
        "text_to_image": first_hit_ranks(text_to_image, positives),
        "image_to_text": first_hit_ranks(image_to_text[described], positives.t()[described]),
    }
    unit = {
        "text_to_image": (described.cumsum(dim=0) - 1)[positives.int().argmax(dim=1)].numpy(),
        "image_to_text": np.arange(int(described.sum())),
    }
    units = int(described.sum())
    names, sums, sizes = [], [], []
    for way, found in ranks.items():
        for k in ks:
            names.append(f"{way}_r{k}")
            sums.append(np.bincount(unit[way], weights=(found <= k).numpy(), minlength=units))
            sizes.append(np.bincount(unit[way], minlength=units).astype(np.float64))
    table, weights = np.stack(sums, axis=1), np.stack(sizes, axis=1)

    def metric(counts: np.ndarray) -> np.ndarray:
        recalls = 100 * weighted_means(counts, table, weights)
        return np.concatenate([recalls, recalls.mean(axis=1, keepdims=True)], axis=1)

    names.append("mean_recall")
    values = metric(np.ones((1, units)))[0]
    ends = None if bootstrap is None else bootstrap.intervals(units, metric)
    intervals = (
        {} if ends is None else {n: (float(low), float(high)) for n, (low, high) in zip(names, ends, strict=True)}
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}, intervals


def generate_captions(model: Any, processor: Any, images: Sequence, settings: EvaluationSettings) -> list[str]:
    """A caption for every picture, by the model's `generate`."""
    captions, images = [], as_processor_reads(images, processor)
    shown = bar(doing="captioning", total=len(images))
    for start in range(0, len(images), settings.batch_size):
        batch = [images[place] for place in range(start, min(start + settings.batch_size, len(images)))]
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        with torch.no_grad():
            tokens = model.generate(pixel_values=pixels, **settings.generation)
        captions += processor.post_process_image_text_to_text(tokens)
        shown.update(len(batch))
    shown.close()
    return captions


def read_captions(path: str | PathLike, image_ids: Sequence[str]) -> list[str]:
    """Captions for `image_ids` in their order, from COCO's format of results: objects with `image_id` and `caption`,
    as an array or as JSON lines.

    Raises:
        ValueError: a malformed row, an unknown picture, a picture twice or without a caption; names file and line.
    """
    wanted, found = set(image_ids), {}
    for item in read_json_objects(Path(path)):
        if isinstance(item, Problem):
            raise ValueError(str(item))
        line, row = item
        key, caption = str(row.get("image_id")), row.get("caption")
        if not isinstance(caption, str) or "image_id" not in row:
            raise ValueError(f"{path}:{line}: a caption is {{'image_id': …, 'caption': '…'}}; there are {list(row)}")
        if key not in wanted or key in found:
            reason = "has two captions" if key in found else "is not in the data set"
            raise ValueError(f"{path}:{line}: the picture {key!r} {reason}")
        found[key] = caption
    if missing := [key for key in image_ids if key not in found]:
        raise ValueError(f"{path} has no caption of {len(missing)} pictures, the first is {missing[0]!r}")
    return [found[key] for key in image_ids]


def _cache_key(settings: EvaluationSettings, data: str, model: str | None) -> str:
    parts: dict[str, Any] = {"version": _VERSION, "task": settings.task, "data": data, "model": model}
    parts |= {"settings": settings.described(), "package": version("modeling-r2d2")}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _kept_result(path: Path) -> EvaluationResult | None:
    """None where the file is torn, or of something else."""
    try:
        return EvaluationResult.from_dict(read_json_object(path))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _model_name(place: str) -> str:
    return Path(place).name

"""One runner for all tasks: several models on one data set, each result kept by what it depends on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from ..finite import to_json
from ..image_classification_r2d2 import R2D2ForImageClassification
from ..loading import read_json_object
from ..processing.bars import bar
from ..processing.datasets.formats import BENCHMARKS
from ..processing.datasets.images import as_processor_reads
from ..processing.datasets.json_records import read_json_objects
from ..processing.datasets.report import Problem
from ..processing.files import write_text
from .bootstrap import Bootstrap, weighted_means
from .captioning import captioning_metrics
from .classifier import classifier_scores
from .gallery import Gallery, Pairs, Pictures, data_hash, open_pairs
from .matching import matching_metrics
from .matching_pairs import MatchingPairs, pair_probabilities
from .models import load_model
from .recall import first_hit_ranks
from .results import EvaluationResult
from .retrieval import score_both_ways
from .zero_shot import PROMPTS, ClassificationSet, classification_folder, classification_metrics, classification_pairs
from .zero_shot import classify as classify_pictures

Task = Literal["retrieval", "matching", "classification", "captioning"]
TASKS = ("retrieval", "matching", "classification", "captioning")
#: Part of every cache key: raise it when a metric changes its value.
_VERSION = 2
Metrics = tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]


@dataclass
class EvaluationSettings:
    """What to evaluate, and how.

    task: of `TASKS`. data: what `load_pairs` takes, a folder of classes (classification), or `emoji:VENDOR`.
    reading: options of `load_pairs`. name: what the data set is called in reports; a published set's name prints its
    published figures. two_stage: retrieval also with the ranker; candidates: k of it, default as the authors' for the
    set, else 128. pairs: a saved list of matching pairs. prompts: templates of classification; labels: file of the
    classes' names. captions: file of captions in place of a model. generation: arguments of `generate`.

    Raises:
        ValueError: an unknown task, or a setting of another one.
    """

    task: Task
    data: str
    reading: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    two_stage: bool = False
    candidates: int | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    pairs: Path | None = None
    prompts: Sequence[str] = PROMPTS
    labels: Path | None = None
    captions: Path | None = None
    generation: dict[str, Any] = field(default_factory=lambda: {"num_beams": 3, "max_new_tokens": 30})
    batch_size: int = 32
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; use one of {', '.join(TASKS)}")
        if self.two_stage and self.task != "retrieval":
            raise ValueError(f"two_stage belongs to retrieval; {self.task} does not rank candidates")
        for name, task in (("pairs", "matching"), ("labels", "classification"), ("captions", "captioning")):
            if getattr(self, name) is not None and self.task != task:
                raise ValueError(f"{name} belongs to the task {task}, not to {self.task}")
        if self.two_stage and self.candidates is None:
            benchmark = BENCHMARKS.get(self.reading.get("format"))
            self.candidates = benchmark.candidates if benchmark else 128
        if not self.two_stage and self.candidates is not None:
            raise ValueError("candidates are ranked in the second stage: set two_stage")

    @property
    def data_name(self) -> str:
        """How reports call the data set, and of matching by a list that list, so that two lists stay apart."""
        name = self.name or self._plain_name()
        return name if self.pairs is None else f"{name}, {self.pairs.stem}"

    def _plain_name(self) -> str:
        benchmark = BENCHMARKS.get(self.reading.get("format"))
        name = benchmark.title if benchmark and benchmark.name != "chinese-clip" else Path(self.data).name
        split = self.reading.get("split")
        # COCO-CN and AIC-ICC have one test split that is meant in tables; theirs goes by the set's name
        return name if split in (None, "test") else f"{name} {split}"

    def described(self) -> dict[str, Any]:
        """All that the figures depend on, but data and model."""
        values: dict[str, Any] = {"resamples": self.bootstrap.resamples, "confidence": self.bootstrap.confidence}
        values["bootstrap_seed"] = self.bootstrap.seed
        if self.task == "retrieval":
            values |= {"candidates": self.candidates, "ks": list(self.ks)}
        elif self.task == "matching" and self.pairs is not None:
            about = MatchingPairs.load(self.pairs).about
            values |= {"pairs": _digest(self.pairs), "negatives": about.get("negatives"), "list": about}
        elif self.task == "classification":
            values |= {"prompts": list(self.prompts), "labels": self.labels and _digest(self.labels)}
        elif self.task == "captioning":
            values |= {"captions": _digest(self.captions)} if self.captions else {"generation": self.generation}
        return values


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

    Raises:
        ValueError, FileNotFoundError, DataRefusedError: data that do not fit the task, or as `load_pairs`.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        self.classes: ClassificationSet | None = None
        self.pairs: Pairs | None = None
        folder = Path(settings.data)
        if settings.task == "classification" and folder.is_dir() and not settings.reading.get("format"):
            reading = {name: settings.reading[name] for name in _OF_FOLDERS if name in settings.reading}
            self.classes = classification_folder(_split_of(folder, settings.reading), settings.labels, **reading)
            stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self.classes.images]
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
        cosine, image_to_text, both = score_both_ways(
            model, processor, gallery.images, gallery.texts, settings.candidates, settings.batch_size
        )
        stages = {"pre_ranking": (cosine, image_to_text)}
        if both is not None:
            stages["two_stage"] = (both["text_to_image"], both["image_to_text"])
        metrics: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for stage, scores in stages.items():
            found, ends = recalls_with_intervals(*scores, gallery.positives(), settings.ks, settings.bootstrap)
            metrics |= {f"{stage}.{name}": value for name, value in found.items()}
            intervals |= {f"{stage}.{name}": value for name, value in ends.items()}
        return metrics, intervals, {"pictures": len(gallery.images), "texts": len(gallery.texts)}

    def _matching(self, model: Any, processor: Any) -> Metrics:
        settings, pairs = self.settings, self.pairs
        if settings.pairs is not None:
            listed, gallery = MatchingPairs.load(settings.pairs), Gallery.from_pairs(pairs)
            images, texts, labels = gallery.images, listed.texts, listed.labels
            index = listed.image_index(gallery)
        elif getattr(pairs, "labelled", False):
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
            images = Pictures([(pairs, row) for row in rows])
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
                classify_pictures(model, processor, data, settings.prompts, settings.batch_size),
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
            captions = read_captions(self.settings.captions, [gallery.image_ids[place] for place in described])
        else:
            pictures = Pictures([gallery.images.places[place] for place in described])
            captions = generate_captions(model, processor, pictures, self.settings)
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
        models: folders, or names of the Hub. cache: folder where results are kept by task, settings, and the digests
            of data and model; None: keep none. report: told, a line each, what is done.

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
        digest = _digest(settings.captions) if settings.captions else model_hash(place)
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
            settings=settings.described(),
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
        text_to_image: (T, I). image_to_text: (I, T). positives: (T, I) boolean.
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


#: What a model computes with; by-products of training do not make another model of it.
_MODEL_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*token*.json",
    "vocab.*",
    "*processor_config.json",
)


def model_hash(place: str | PathLike) -> str | None:
    """A digest of a model folder's weights, configuration, tokenizer and processor; None for a name of the Hub,
    whose results are then not kept."""
    folder = Path(place)
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}:{_digest(path)}".encode())
    return digest.hexdigest()


def _digest(path: str | PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _cache_key(settings: EvaluationSettings, data: str, model: str | None) -> str:
    from .. import __version__

    parts = {"version": _VERSION, "task": settings.task, "data": data, "model": model}
    parts |= {"settings": settings.described(), "package": __version__}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _kept_result(path: Path) -> EvaluationResult | None:
    """None where the file is torn, or of something else."""
    try:
        return EvaluationResult.from_dict(read_json_object(path))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _model_name(place: str) -> str:
    return Path(place).name

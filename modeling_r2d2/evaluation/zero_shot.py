"""Zero-shot classification: a picture belongs to the class whose prompts it is nearest to.

A class is the mean of its prompts' normalised embeddings (every name of the class in every template), normalised
again: prompt ensembles as in CLIP and Wukong's global models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csr_array
from torch import Tensor

from ..inference.bootstrap import Bootstrap, weighted_means
from ..inference.encoding import encode_images, encode_texts, is_token_wise, pre_ranking_scores
from ..inference.prompts import class_embeddings, prompts_of
from ..inference.recall import first_hit_ranks
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.datasets import PairDataset, load_pairs
from ..processing.datasets.classes import classes_in, read_class_names
from ..processing.datasets.gallery import GalleryImages, Pairs
from ..processing.datasets.text_files import decode_text

if TYPE_CHECKING:
    from ..model.modeling_wukong import WukongModel
    from ..model.processing_wukong import WukongProcessor

#: Ours; Wukong's 80 prompts may be given as a file instead.
PROMPTS = (
    "{}",
    "{}。",
    "一张{}的照片",
    "一张{}的图片",
    "一幅{}的图像",
    "这是{}",
    "这是一张{}的照片",
    "图中有{}",
    "照片里是{}",
    "一张清晰的{}照片",
    "一张模糊的{}照片",
    "{}的特写",
    "近处的{}",
    "远处的{}",
    "一个{}",
    "许多{}",
    "{}的图标",
    "一幅{}的画",
    "画里的{}",
    "我拍的{}",
)


@dataclass(frozen=True)
class ClassificationSet:
    """N pictures of C classes: images, decoded on access; labels (N,); names, one or several of every class."""

    images: Sequence[Image.Image | Path]
    labels: list[int]
    names: list[list[str]]


def classification_folder(
    folder: str | PathLike, labels: str | PathLike | None = None, **reading: Any
) -> ClassificationSet:
    """A sub-folder of pictures per class.

    Args:
        labels: a file of lines `sub-folder<TAB>name` or `sub-folder<TAB>name，another name`; without it the folders'
            own names.
        reading: options of `load_pairs`; pictures that cannot be read are left out within its `max_error_rate`.

    Raises:
        ValueError: no sub-folders with pictures, one that the file of labels does not name, a malformed line.
        DataRefusedError: too many pictures that cannot be read.
    """
    root = Path(folder)
    classes = classes_in(root)
    if len(classes) < 2:
        raise ValueError(
            f"{root} has {len(classes)} sub-folders with pictures; classification needs one for every class"
        )
    given = None if labels is None else read_class_names(Path(labels), reading.get("encoding"))
    pairs = load_pairs(root, format="classes", **reading)
    assert isinstance(pairs, PairDataset)  # a folder is no stream
    counts = Counter(pairs.first_texts())
    if given is not None and (missing := [name for name in counts if name not in given]):
        raise ValueError(f"{labels} has no line for the folder {missing[0]}, which holds {counts[missing[0]]} pictures")
    numbers = {name: number for number, name in enumerate(counts)}
    return ClassificationSet(
        [Path(pairs.record(row)["image"]["path"]) for row in range(len(pairs))],
        [numbers[name] for name in pairs.first_texts()],
        [[name] if given is None else given[name] for name in counts],
    )


def classification_pairs(pairs: Pairs) -> ClassificationSet:
    """Pairs whose text is the name of the class; several texts of a pair are names of one class.

    Raises:
        ValueError: a single class.
    """
    classes: dict[tuple[str, ...], int] = {}
    labels = [classes.setdefault(tuple(pairs.texts(row)), len(classes)) for row in range(len(pairs))]
    if len(classes) < 2:
        raise ValueError("all pairs have one text; classification needs the names of several classes")
    images = GalleryImages([(pairs, row) for row in range(len(pairs))])
    return ClassificationSet(images, labels, [list(names) for names in classes])


def read_prompts(path: str | PathLike) -> list[str]:
    """Templates from a file, one a line, each with `{}` for the name.

    Raises:
        ValueError: a line without `{}`, or none at all; names file and line.
    """
    prompts = []
    for number, line in enumerate(decode_text(Path(path).read_bytes())[0].split("\n"), start=1):
        if not line.strip():
            continue
        if line.count("{}") != 1:
            raise ValueError(f"{path}:{number}: a prompt has {{}} once, where the name goes: {line!r}")
        prompts.append(line.strip())
    if not prompts:
        raise ValueError(f"{path} has no prompts")
    return prompts


def classify(
    model: R2D2Model | WukongModel,
    processor: R2D2Processor | WukongProcessor,
    data: ClassificationSet,
    prompts: Sequence[str] = PROMPTS,
    batch_size: int = 32,
) -> Tensor:
    """(N, C) scores of pictures and classes, on the CPU: cosines with `class_embeddings`.

    Of a model that compares token by token they are probabilities, as Wukong (arXiv 2202.06767) ensembles prompts:
    p(class | picture) = mean over the prompts of the sum over the class's names of softmax over all names of s / τ.

    Raises:
        ValueError: a prompt without `{}`, a class without a name.
    """
    if not is_token_wise(model):
        classes = class_embeddings(model, processor, data.names, prompts, 8 * batch_size)
        images = encode_images(model, processor, data.images, batch_size, keep_states=False)
        return (images.embeds @ classes.t()).cpu()
    listed, owner = prompts_of(data.names, prompts)
    texts = encode_texts(model, processor, listed, 8 * batch_size, keep_states=False)
    images = encode_images(model, processor, data.images, batch_size, keep_states=False)
    _, per_image = pre_ranking_scores(model, texts, images)
    per_prompt = per_image.unflatten(1, (-1, len(prompts))) / model.bounded_temperature().detach().cpu()
    names = per_prompt.softmax(dim=1).mean(dim=2)  # (N, names)
    return names.new_zeros(len(names), len(data.names)).index_add_(1, owner[:: len(prompts)], names)


def classification_metrics(
    scores: Tensor, labels: Sequence[int], bootstrap: Bootstrap | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Accuracies in percent; ties and NaN count against the model, as in recall@K.

    Args:
        scores: (N, C).
        labels: (N,) the right class of each.
        bootstrap: None: no intervals.

    Returns:
        `top1`, `top5` (every picture where C < 5) and `mean_per_class`, the mean of the classes' own top-1; intervals.
    """
    right_ones = np.asarray(labels, dtype=np.int64)
    if scores.shape[0] != len(labels):
        raise ValueError(f"scores of {scores.shape[0]} pictures and {len(labels)} labels")
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    positives[torch.arange(len(labels)), torch.from_numpy(right_ones)] = True
    ranks = first_hit_ranks(scores, positives).numpy()
    hits = np.stack([ranks <= 1, ranks <= 5], axis=1).astype(np.float64)
    rows = np.arange(len(labels))
    members = csr_array((np.ones(len(labels)), (rows, right_ones)), shape=tuple(scores.shape))
    right = csr_array((hits[:, 0], (rows, right_ones)), shape=tuple(scores.shape))

    def metric(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a class may be absent from a resample
            per_class = np.nanmean((counts @ right) / (counts @ members), axis=1)
        return 100 * np.concatenate([weighted_means(counts, hits, np.ones_like(hits)), per_class[:, None]], axis=1)

    names = ("top1", "top5", "mean_per_class")
    values = metric(np.ones((1, len(labels))))[0]
    ends = None if bootstrap is None else bootstrap.intervals(len(labels), metric)
    intervals = (
        {} if ends is None else {n: (float(low), float(high)) for n, (low, high) in zip(names, ends, strict=True)}
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}, intervals

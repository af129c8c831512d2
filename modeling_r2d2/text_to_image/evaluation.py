"""How well generated pictures show what their prompt says, judged by an R2D2; and sheets to look at."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inference.encoding import encode_images, encode_texts
from ..inference.ranker import ranker_of
from ..inference.recall import first_hit_ranks, recall_at
from ..model.modeling_r2d2 import R2D2Model
from ..model.pipeline_text_to_image import R2D2TextToImagePipeline
from ..model.processing_r2d2 import R2D2Processor


@dataclass(frozen=True)
class GeneratedResult:
    """What `evaluate_generated` found of N pictures against a gallery of U names.

    Args:
        recall: in percent, picture -> its own name among the U, by the cosine: {"r1": …, "r5": …, "r10": …}.
        chance: the same of guessing.
        median_rank: of a picture's own name, from 1.
        cosine: mean with the own name.
        match_probability: mean of the pairs (picture, own name); None of a judge that is pre-ranking only.
        other_match_probability: of the pairs (picture, next name), for comparison.
        ranks: (N,), of every picture.
        probabilities: (N,), of every picture.
    """

    images: int
    names: int
    recall: dict[str, float]
    chance: dict[str, float]
    median_rank: float
    cosine: float
    match_probability: float | None
    other_match_probability: float | None
    ranks: Tensor = field(repr=False)
    probabilities: Tensor | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, without those of single pictures."""
        return {name: value for name, value in asdict(self).items() if name not in ("ranks", "probabilities")}


def generate(
    pipeline: R2D2TextToImagePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    batch_size: int = 50,
    **call: Any,
) -> list[list[Image.Image]]:
    """Pictures of every prompt, one a seed: P lists of S. A picture depends on its prompt and seed alone.

    Args:
        call: further arguments of the pipeline's call.
    """
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    images: list[Image.Image] = []
    for start in range(0, len(jobs), batch_size):
        texts, own = zip(*jobs[start : start + batch_size], strict=True)
        generators = [torch.Generator().manual_seed(seed) for seed in own]
        images += pipeline(list(texts), generator=generators, **call).images
    each = len(seeds)
    return [images[start : start + each] for start in range(0, len(images), each)]


def evaluate_generated(
    judge: R2D2Model,
    processor: R2D2Processor,
    images: Sequence[Image.Image],
    own: Sequence[int],
    names: Sequence[str],
    ks: Sequence[int] = (1, 5, 10),
) -> GeneratedResult:
    """Does an R2D2 find a picture's own name among all names?

    Use a judge that had no part in the generator: at least another seed than the one whose text encoder it reads.

    Args:
        images: N pictures.
        own: (N,) for each the place of its prompt in `names`.
        names: U texts, all different.

    Raises:
        ValueError: lengths that differ, a place that does not exist, a name twice.
    """
    if len(images) != len(own):
        raise ValueError(f"{len(images)} images, but {len(own)} places of their names")
    if len(set(names)) != len(names):
        twice = sorted(name for name in set(names) if list(names).count(name) > 1)
        raise ValueError(f"names must be all different, these are there more than once: {twice[:5]}")
    if len(own) and not (min(own) >= 0 and max(own) < len(names)):
        raise ValueError(f"own points outside of the {len(names)} names")
    ranked = judge.can_rank
    pil_images = encode_images(judge, processor, images, keep_states=ranked)
    texts = encode_texts(judge, processor, names, keep_states=ranked)
    cosine = (pil_images.embeds @ texts.embeds.t()).cpu()
    rows, columns = torch.arange(len(images)), torch.as_tensor(own)
    positives = torch.zeros(cosine.shape, dtype=torch.bool)
    positives[rows, columns] = True
    ranks = first_hit_ranks(cosine, positives)
    probability = other = None
    if ranked:
        text_index = torch.cat([columns, (columns + 1) % len(names)])
        both = ranker_of(judge).match_probabilities(texts, pil_images, text_index, rows.repeat(2))
        probability, other = both.chunk(2)
    return GeneratedResult(
        images=len(images),
        names=len(names),
        recall={f"r{k}": value for k, value in recall_at(ranks, ks).items()},
        chance={f"r{k}": 100 * min(k / len(names), 1.0) for k in ks},
        median_rank=ranks.double().median().item(),
        cosine=cosine[rows, columns].mean().item(),
        match_probability=None if probability is None else probability.mean().item(),
        other_match_probability=None if other is None else other.mean().item(),
        ranks=ranks,
        probabilities=probability,
    )


def feature_kid(features: Tensor, others: Tensor) -> float:
    """Kernel distance of two sets of features: the unbiased MMD² with the kernel (x·y / D + 1)³ (arXiv 1801.01401).

    On the image features of an R2D2 this is no FID and not the KID of Inception features: it compares sets judged
    by one and the same model, and nothing else.

    Args:
        features: (N, D), unnormalised, N and M at least 2.
        others: (M, D), unnormalised, N and M at least 2.

    Raises:
        ValueError: a single picture on a side.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError("the distance needs at least two pictures on each side")
    x, y = features.double(), others.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.t() / a.shape[1] + 1) ** 3

    within = 0.0
    for side in (x, y):
        gram, count = kernel(side, side), len(side)
        within += (gram.sum() - gram.diagonal().sum()).item() / (count * (count - 1))
    return within - 2 * kernel(x, y).mean().item()


def image_features(judge: R2D2Model, processor: R2D2Processor, images: Sequence[Image.Image]) -> Tensor:
    """(N, D) unnormalised image embeddings."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 64):
            pixels = processor(images=list(images[start : start + 64]), return_tensors="pt")["pixel_values"]
            parts.append(judge.get_image_features(pixels.to(judge.device, judge.dtype)).pooler_output.float().cpu())
    return torch.cat(parts)


def nearest_images(images: Sequence[Image.Image], known: Tensor) -> tuple[Tensor, Tensor]:
    """How close generated pictures come to those trained on: root mean squared error in 0..255 and place of the
    nearest, (N,) each.

    Args:
        images: N pictures of S × S.
        known: (K, 3, S, S) uint8.
    """
    drawn = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    if drawn.shape[1:] != known.shape[1:]:
        raise ValueError(f"generated pictures are {tuple(drawn.shape[1:])}, the known ones {tuple(known.shape[1:])}")
    distance = torch.cdist(drawn.flatten(1).double(), known.flatten(1).double()) / drawn[0].numel() ** 0.5
    smallest = distance.min(dim=1)
    return smallest.values, smallest.indices

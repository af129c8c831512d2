"""Classes described by prompts, for zero-shot classification.

This file travels to the Hub beside the weights, so it imports only torch and flat siblings.
"""

from collections.abc import Sequence

from torch import Tensor

from .two_towers_r2d2 import normalize


def class_prompts(labels: Sequence[str], templates: Sequence[str] = ("一张{}的图片",)) -> list[str]:
    """Every label in every template, the templates of a label next to each other: C·K texts.

    Raises:
        ValueError: no labels, no templates, or a template without `{}`.
    """
    if isinstance(labels, str) or not labels or isinstance(templates, str) or not templates:
        raise ValueError("labels and templates must be lists with at least one entry")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"a template must contain {{}} where the label goes, got {template!r}")
    return [template.replace("{}", label) for label in labels for template in templates]


def class_means(embeds: Tensor, owner: Tensor, classes: int) -> Tensor:
    """Prompt ensembles as in CLIP: the mean of a class's embeddings, brought to unit length.

    Args:
        embeds: (N, P), L2-normalised.
        owner: (N,) int64, the class of each.
        classes: C; each owns at least one.

    Returns:
        (C, P).
    """
    return normalize(embeds.new_zeros(classes, embeds.shape[1]).index_add_(0, owner.to(embeds.device), embeds))


__all__ = ["class_means", "class_prompts"]

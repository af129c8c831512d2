"""A fine-tuned classifier of pictures, judged on the same sets as zero-shot classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..inference.encoding import evaluating, name_of
from ..inference.finite import require_finite
from ..processing.files.images import open_image

if TYPE_CHECKING:
    from ..model.image_classification_r2d2 import R2D2ForImageClassification
    from ..model.processing_r2d2 import R2D2Processor
    from .zero_shot import ClassificationSet


def classifier_scores(
    model: R2D2ForImageClassification, processor: R2D2Processor, data: ClassificationSet, batch_size: int = 32
) -> tuple[Tensor, list[int]]:
    """What the head says of every picture, and the right answers among its own classes.

    All classes of the head compete, also those that the set lacks.

    Returns:
        logits (N, classes of the head) float32 on the CPU, and N numbers of classes.

    Raises:
        ValueError: a class of the set that the head does not have, logits that are not finite.
        ImageReadError: a bad file, by name.
    """
    places = class_places(model, data.names)
    scores = []
    with evaluating(model):
        for start in range(0, len(data.images), batch_size):
            batch = [open_image(data.images[i]) for i in range(start, min(start + batch_size, len(data.images)))]
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]
            scores.append(model(pixel_values.to(model.device, model.dtype)).logits.float().cpu())
    logits = torch.cat(scores)
    require_finite(logits, f"class logits of {name_of(model)}")
    return logits, [places[label] for label in data.labels]


def class_places(model: R2D2ForImageClassification, names: list[list[str]]) -> list[int]:
    """The number in the head of every class, which may go by any of its names.

    Raises:
        ValueError: a class that the head does not have, or two that are one there.
    """
    known = {name: number for number, name in (model.config.id2label or {}).items()}
    places = []
    for some in names:
        found = sorted({int(known[name]) for name in some if name in known})
        if len(found) != 1 or found[0] in places:
            what = "does not have" if not found else "has more than once, or under two names,"
            raise ValueError(
                f"the classifier {what} the class {some[0]!r}; its {len(known)} classes are "
                f"{', '.join(list(known)[:10])}{' …' if len(known) > 10 else ''}"
            )
        places += found
    return places


__all__ = ["class_places", "classifier_scores"]

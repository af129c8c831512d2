"""What a validation split is judged by while fine-tuning; all shares are in percent."""

import numpy as np
from transformers import EvalPrediction

from ..inference.matching import roc_auc
from ..inference.recall import retrieval_metrics


def matching_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`roc_auc` of the match probability, and `accuracy` at a threshold of ½."""
    probability, labels = _first(prediction.predictions), _first(prediction.label_ids)
    return {
        "roc_auc": roc_auc(probability, labels),
        "accuracy": 100 * float(((probability > 0.5) == labels.astype(bool)).mean()),
    }


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`accuracy`: share of pictures whose best class is the right one."""
    logits, labels = _first(prediction.predictions), _first(prediction.label_ids)
    return {"accuracy": 100 * float((logits.argmax(axis=1) == labels).mean())}


def _first(value) -> np.ndarray:
    return np.asarray(value[0] if isinstance(value, (tuple, list)) else value)


#: By task: `compute_metrics`, the name of what is better, and whether more of it is.
METRICS = {
    "retrieval": (retrieval_metrics, "mean_recall", True),
    "matching": (matching_metrics, "roc_auc", True),
    "caption": (None, "loss", False),
    "classification": (classification_metrics, "accuracy", True),
}

__all__ = ["METRICS", "classification_metrics", "matching_metrics"]

"""Evaluation: recall of retrieval by pre-ranking and by both stages, and the pictures that show it.

`runner` evaluates models on any task (retrieval, matching, zero-shot classification, captioning) and `results` reports
it; the tasks' own modules are `matching`, `matching_pairs`, `zero_shot`, `captioning`, `bootstrap`. They, `figures`
(contact sheet, training curves) and the metrics for the `evaluate` library (`recall_at_k`, `matching_auc`,
`zero_shot_accuracy`, `chinese_captioning`) are imported on their own: they need packages of the extra `[train]`.
"""

from ..inference.encoding import EncodedImages, EncodedTexts, encode_images, encode_texts
from ..inference.recall import first_hit_ranks, recall_at, recall_both_ways, retrieval_metrics
from ..processing.datasets.gallery import positive_pairs
from .retrieval import RetrievalResult, evaluate_retrieval, two_stage_scores

__all__ = [
    "EncodedImages",
    "EncodedTexts",
    "RetrievalResult",
    "encode_images",
    "encode_texts",
    "evaluate_retrieval",
    "first_hit_ranks",
    "positive_pairs",
    "recall_at",
    "recall_both_ways",
    "retrieval_metrics",
    "two_stage_scores",
]

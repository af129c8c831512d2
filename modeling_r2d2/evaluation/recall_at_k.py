"""Recall@K as a metric of the `evaluate` library.

```python
metric = evaluate.load("modeling_r2d2/evaluation/recall_at_k.py")  # or RecallAtK()
metric.compute(predictions=scores, references=[[0], [1, 2]], ks=[1, 5])  # {"r1": 50.0, "r5": 100.0}
```
"""

import datasets
import evaluate
import torch

from modeling_r2d2.inference.recall import first_hit_ranks, recall_at

_DESCRIPTION = "Share of queries, in percent, whose first right item is among the K best; ties count as misses."
_INPUTS = """
Args:
    predictions: one row of scores per query, over a gallery that is the same for every query.
    references: for each query the positions of its right items in the gallery.
    ks: cut-offs, default 1, 5, 10.
Returns:
    `r1`, `r5`, … in percent.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RecallAtK(evaluate.Metric):
    """Recall@K in percent; a row of scores per query, the positions of its right items as reference."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)) -> dict[str, float]:
        scores = torch.tensor(predictions, dtype=torch.float32)
        positives = torch.zeros(scores.shape, dtype=torch.bool)
        for row, columns in enumerate(references):
            positives[row, columns] = True
        return {f"r{k}": recall for k, recall in recall_at(first_hit_ranks(scores, positives), ks).items()}

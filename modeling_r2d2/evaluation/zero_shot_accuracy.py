"""Accuracies of zero-shot classification as a metric of the `evaluate` library.

```python
metric = evaluate.load("modeling_r2d2/evaluation/zero_shot_accuracy.py")  # or ZeroShotAccuracy()
metric.compute(predictions=[[0.9, 0.1], [0.2, 0.3]], references=[0, 0])  # {"top1": 50.0, "top5": 100.0, …}
```
"""

import datasets
import evaluate
import torch

from modeling_r2d2.evaluation.zero_shot import classification_metrics

_DESCRIPTION = "Top-1, top-5 and mean-per-class accuracy from scores, in percent; ties count as misses."
_INPUTS = """
Args:
    predictions: one row of scores per picture, over the classes. references: the right class of each.
Returns:
    `top1`, `top5`, `mean_per_class` in percent.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ZeroShotAccuracy(evaluate.Metric):
    """Top-1, top-5 and mean-per-class accuracy; see `modeling_r2d2.evaluation.zero_shot`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return classification_metrics(torch.tensor(predictions, dtype=torch.float32), references)[0]

"""ROC-AUC and best-threshold accuracy of matching as a metric of the `evaluate` library.

```python
metric = evaluate.load("modeling_r2d2/evaluation/matching_auc.py")  # or MatchingAUC()
metric.compute(predictions=[0.9, 0.2, 0.6], references=[1, 0, 1])  # {"auc": 100.0, "accuracy": 100.0, "threshold": 0.6}
```
"""

import datasets
import evaluate

from modeling_r2d2.inference.matching import matching_metrics

_DESCRIPTION = "How well match probabilities separate matching pairs from others: ROC-AUC, best-threshold accuracy."
_INPUTS = """
Args:
    predictions: match probabilities. references: 1 for a match, 0 for none.
Returns:
    `auc` and `accuracy` (of the best threshold on these very pairs) in percent, and that `threshold`.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MatchingAUC(evaluate.Metric):
    """ROC-AUC, best-threshold accuracy and the threshold; see `modeling_r2d2.inference.matching`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return matching_metrics(predictions, references)[0]

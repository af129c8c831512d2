"""BLEU-4, ROUGE-L, CIDEr-D and exact matches on Chinese characters as a metric of the `evaluate` library.

```python
metric = evaluate.load("modeling_r2d2/evaluation/chinese_captioning.py")  # or ChineseCaptioning()
metric.compute(predictions=["一只小狗", "蓝天"], references=[["一只狗", "小狗"], ["蓝天"]])  # {"bleu4": …, …}
```
"""

import datasets
import evaluate

from modeling_r2d2.evaluation.captioning import captioning_metrics

_DESCRIPTION = "BLEU-4, ROUGE-L, CIDEr-D and the share of exactly right captions, on Chinese characters."
_INPUTS = """
Args:
    predictions: a caption for every picture. references: a list of captions for every picture.
Returns:
    `bleu4`, `rouge_l`, `exact_match` in percent; `cider` from 0 to 10.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ChineseCaptioning(evaluate.Metric):
    """Caption metrics on Chinese characters; see `modeling_r2d2.evaluation.captioning`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("string"),
            "references": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return captioning_metrics(predictions, references)[0]

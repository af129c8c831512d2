"""transformers pipelines of R2D2, registered under their task names:

- `"r2d2-zero-shot-image-classification"`: R2D2ZeroShotImageClassificationPipeline
- `"image-text-matching"`: R2D2ImageTextMatchingPipeline
"""

from transformers import AutoModel, AutoModelForZeroShotImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .image_text_matching import R2D2ImageTextMatchingPipeline
from .zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline

for _task, _pipeline, _model in (
    (
        "r2d2-zero-shot-image-classification",
        R2D2ZeroShotImageClassificationPipeline,
        AutoModelForZeroShotImageClassification,
    ),
    ("image-text-matching", R2D2ImageTextMatchingPipeline, AutoModel),
):
    if _task not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(_task, pipeline_class=_pipeline, pt_model=_model, type="multimodal")

__all__ = ["R2D2ImageTextMatchingPipeline", "R2D2ZeroShotImageClassificationPipeline"]

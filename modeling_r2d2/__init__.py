"""R2D2 and PRD2 (arXiv 2205.03860), Chinese vision–language models for the Hugging Face ecosystem.

Importing this package registers the models with transformers' Auto classes; everything beyond configuration,
model and processor is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .captioning_r2d2 import R2D2ForConditionalGeneration
from .configuration_r2d2 import R2D2Config, R2D2CrossEncoderConfig, R2D2TextConfig, R2D2VisionConfig
from .configuration_wukong import WukongConfig, WukongTextConfig
from .image_classification_r2d2 import R2D2ForImageClassification
from .image_text_retrieval_r2d2 import R2D2ForImageTextRetrieval
from .modeling_r2d2 import (
    R2D2ForImageTextMatching,
    R2D2MatchOutput,
    R2D2Model,
    R2D2Output,
    R2D2PreTrainedModel,
    R2D2TextModel,
)
from .modeling_wukong import WukongModel, WukongOutput, WukongPreTrainedModel
from .pretraining_r2d2 import (
    R2D2FeatureGuidance,
    R2D2ForPreTraining,
    R2D2ForPreTrainingOutput,
    R2D2TargetGuidance,
    R2D2TeacherTargets,
)
from .processing.processing_r2d2 import R2D2Processor
from .processing.processing_wukong import WukongProcessor

__version__ = "0.1.0"

_LAZY = {
    "DualQueueContrastiveCallback": ".distillation.dual_queue",
    "FeatureGuidedDistillationCallback": ".distillation.callbacks",
    "TargetGuidedDistillationCallback": ".distillation.callbacks",
    "TwoWayDistillationCallback": ".distillation.callbacks",
    "R2D2OnnxModel": ".export.onnx_model",
    "R2D2Retriever": ".retrieval.retriever",
    "R2D2Trainer": ".training.trainer",
    "R2D2TrainingArguments": ".training.arguments",
    "R2D2TextToImagePipeline": ".pipelines.text_to_image",
    "R2D2ImageTextMatchingPipeline": ".pipelines.image_text_matching",
    "R2D2ZeroShotImageClassificationPipeline": ".pipelines.zero_shot_image_classification",
    "convert_official_checkpoint": ".conversion.official",
    "convert_wukong_checkpoint": ".conversion.wukong",
    "export_onnx": ".export.folder",
}

if TYPE_CHECKING:
    from .conversion.official import convert_official_checkpoint
    from .conversion.wukong import convert_wukong_checkpoint
    from .distillation.callbacks import (
        FeatureGuidedDistillationCallback,
        TargetGuidedDistillationCallback,
        TwoWayDistillationCallback,
    )
    from .distillation.dual_queue import DualQueueContrastiveCallback
    from .export.folder import export_onnx
    from .export.onnx_model import R2D2OnnxModel
    from .pipelines.image_text_matching import R2D2ImageTextMatchingPipeline
    from .pipelines.zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline
    from .retrieval.retriever import R2D2Retriever
    from .training.arguments import R2D2TrainingArguments
    from .training.trainer import R2D2Trainer


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _from_vision_text_pretrained(cls, clip, roberta, config=None, **overrides):
    """Warm start from an image tower and a Chinese BERT; see `conversion.warm_start.from_vision_text_pretrained`."""
    from .conversion.warm_start import from_vision_text_pretrained

    return from_vision_text_pretrained(cls, clip, roberta, config, **overrides)


AutoConfig.register(R2D2Config.model_type, R2D2Config, exist_ok=True)
AutoConfig.register(R2D2CrossEncoderConfig.model_type, R2D2CrossEncoderConfig, exist_ok=True)
AutoModel.register(R2D2Config, R2D2Model, exist_ok=True)
AutoModelForZeroShotImageClassification.register(R2D2Config, R2D2Model, exist_ok=True)
AutoModelForImageClassification.register(R2D2Config, R2D2ForImageClassification, exist_ok=True)
AutoModelForImageTextToText.register(R2D2Config, R2D2ForConditionalGeneration, exist_ok=True)
AutoModelForPreTraining.register(R2D2Config, R2D2ForPreTraining, exist_ok=True)
AutoProcessor.register(R2D2Config, R2D2Processor, exist_ok=True)
AutoConfig.register(WukongConfig.model_type, WukongConfig, exist_ok=True)
AutoModel.register(WukongConfig, WukongModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(WukongConfig, WukongModel, exist_ok=True)
AutoProcessor.register(WukongConfig, WukongProcessor, exist_ok=True)
R2D2Config.register_for_auto_class()
R2D2Processor.register_for_auto_class("AutoProcessor")
WukongConfig.register_for_auto_class()
WukongProcessor.register_for_auto_class("AutoProcessor")
R2D2Model.from_vision_text_pretrained = classmethod(_from_vision_text_pretrained)
importlib.import_module(".pipelines", __name__)  # registers their task names

__all__ = [
    "DualQueueContrastiveCallback",
    "FeatureGuidedDistillationCallback",
    "R2D2Config",
    "R2D2CrossEncoderConfig",
    "R2D2FeatureGuidance",
    "R2D2ForConditionalGeneration",
    "R2D2ForImageClassification",
    "R2D2ForImageTextMatching",
    "R2D2ForImageTextRetrieval",
    "R2D2ForPreTraining",
    "R2D2ForPreTrainingOutput",
    "R2D2ImageTextMatchingPipeline",
    "R2D2MatchOutput",
    "R2D2Model",
    "R2D2OnnxModel",
    "R2D2Output",
    "R2D2PreTrainedModel",
    "R2D2Processor",
    "R2D2Retriever",
    "R2D2TargetGuidance",
    "R2D2TeacherTargets",
    "R2D2TextConfig",
    "R2D2TextModel",
    "R2D2Trainer",
    "R2D2TrainingArguments",
    "R2D2VisionConfig",
    "R2D2ZeroShotImageClassificationPipeline",
    "TargetGuidedDistillationCallback",
    "TwoWayDistillationCallback",
    "WukongConfig",
    "WukongModel",
    "WukongOutput",
    "WukongPreTrainedModel",
    "WukongProcessor",
    "WukongTextConfig",
    "convert_official_checkpoint",
    "convert_wukong_checkpoint",
    "export_onnx",
]

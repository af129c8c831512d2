"""R2D2 and PRD2 (arXiv 2205.03860), Chinese vision–language models for the Hugging Face ecosystem.

Importing this package registers its classes with transformers' Auto classes and pipelines. Every name is imported on
first use, so that what needs neither torch nor transformers does not wait for them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_models, register_present

__version__ = "0.1.0"

_MODULES = {
    "integrations.brivl": ["convert_brivl_checkpoint"],
    "integrations.official": ["convert_official_checkpoint"],
    "integrations.wukong": ["convert_wukong_checkpoint"],
    "distillation.callbacks": [
        "FeatureGuidedDistillationCallback",
        "TargetGuidedDistillationCallback",
        "TwoWayDistillationCallback",
    ],
    "distillation.dual_queue": ["DualQueueContrastiveCallback"],
    "inference.onnx_model": ["R2D2OnnxModel"],
    "integrations.onnx_export": ["export_onnx"],
    "model.captioning_r2d2": ["R2D2ForConditionalGeneration"],
    "model.configuration_brivl": ["BriVLConfig", "BriVLTextConfig", "BriVLVisionConfig"],
    "model.configuration_r2d2": ["R2D2Config", "R2D2CrossEncoderConfig", "R2D2TextConfig", "R2D2VisionConfig"],
    "model.configuration_wukong": ["WukongConfig", "WukongTextConfig"],
    "model.image_classification_r2d2": ["R2D2ForImageClassification"],
    "model.image_text_retrieval_r2d2": ["R2D2ForImageTextRetrieval"],
    "model.image_processing_brivl": ["BriVLImageProcessor"],
    "model.modeling_brivl": ["BriVLModel"],
    "model.modeling_r2d2": [
        "R2D2ForImageTextMatching",
        "R2D2MatchOutput",
        "R2D2Model",
        "R2D2Output",
        "R2D2PreTrainedModel",
        "R2D2TextModel",
    ],
    "model.modeling_wukong": ["WukongModel", "WukongOutput", "WukongPreTrainedModel"],
    "model.pipeline_image_text_matching": ["R2D2ImageTextMatchingPipeline"],
    "model.pipeline_text_to_image": ["R2D2TextToImagePipeline"],
    "model.pipeline_zero_shot_image_classification": ["R2D2ZeroShotImageClassificationPipeline"],
    "model.pretraining_brivl": ["BriVLForImageTextMatching", "BriVLForImageTextRetrieval", "BriVLForPreTraining"],
    "model.pretraining_r2d2": [
        "R2D2FeatureGuidance",
        "R2D2ForPreTraining",
        "R2D2ForPreTrainingOutput",
        "R2D2TargetGuidance",
        "R2D2TeacherTargets",
    ],
    "model.processing_brivl": ["BriVLProcessor"],
    "model.processing_r2d2": ["R2D2Processor"],
    "model.processing_wukong": ["WukongProcessor"],
    "search.retriever": ["R2D2Retriever"],
    "training.arguments": ["R2D2TrainingArguments"],
    "training.trainer": ["R2D2Trainer"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:
    from .distillation.callbacks import (
        FeatureGuidedDistillationCallback,
        TargetGuidedDistillationCallback,
        TwoWayDistillationCallback,
    )
    from .distillation.dual_queue import DualQueueContrastiveCallback
    from .inference.onnx_model import R2D2OnnxModel
    from .integrations.brivl import convert_brivl_checkpoint
    from .integrations.official import convert_official_checkpoint
    from .integrations.onnx_export import export_onnx
    from .integrations.wukong import convert_wukong_checkpoint
    from .model.captioning_r2d2 import R2D2ForConditionalGeneration
    from .model.configuration_brivl import BriVLConfig, BriVLTextConfig, BriVLVisionConfig
    from .model.configuration_r2d2 import R2D2Config, R2D2CrossEncoderConfig, R2D2TextConfig, R2D2VisionConfig
    from .model.configuration_wukong import WukongConfig, WukongTextConfig
    from .model.image_classification_r2d2 import R2D2ForImageClassification
    from .model.image_processing_brivl import BriVLImageProcessor
    from .model.image_text_retrieval_r2d2 import R2D2ForImageTextRetrieval
    from .model.modeling_brivl import BriVLModel
    from .model.modeling_r2d2 import (
        R2D2ForImageTextMatching,
        R2D2MatchOutput,
        R2D2Model,
        R2D2Output,
        R2D2PreTrainedModel,
        R2D2TextModel,
    )
    from .model.modeling_wukong import WukongModel, WukongOutput, WukongPreTrainedModel
    from .model.pipeline_image_text_matching import R2D2ImageTextMatchingPipeline
    from .model.pipeline_text_to_image import R2D2TextToImagePipeline
    from .model.pipeline_zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline
    from .model.pretraining_brivl import BriVLForImageTextMatching, BriVLForImageTextRetrieval, BriVLForPreTraining
    from .model.pretraining_r2d2 import (
        R2D2FeatureGuidance,
        R2D2ForPreTraining,
        R2D2ForPreTrainingOutput,
        R2D2TargetGuidance,
        R2D2TeacherTargets,
    )
    from .model.processing_brivl import BriVLProcessor
    from .model.processing_r2d2 import R2D2Processor
    from .model.processing_wukong import WukongProcessor
    from .search.retriever import R2D2Retriever
    from .training.arguments import R2D2TrainingArguments
    from .training.trainer import R2D2Trainer


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    if module.startswith("model."):
        register_models()
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


register_present()

__all__ = [
    "BriVLConfig",
    "BriVLForImageTextMatching",
    "BriVLForImageTextRetrieval",
    "BriVLForPreTraining",
    "BriVLImageProcessor",
    "BriVLModel",
    "BriVLProcessor",
    "BriVLTextConfig",
    "BriVLVisionConfig",
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
    "R2D2TextToImagePipeline",
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
    "convert_brivl_checkpoint",
    "convert_official_checkpoint",
    "convert_wukong_checkpoint",
    "export_onnx",
]

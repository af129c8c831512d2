"""Registers the package's classes with transformers, without importing transformers for it.

Importing torch and transformers takes seconds, and the help of the command line needs neither. So the classes are
registered at once where transformers' registries are there already, and else as soon as they are: when the outermost
import that brings them has ended, and not within it, where modules that our files need, or our files themselves, may
be half made.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, cast


def _configurations() -> None:
    from transformers import AutoConfig

    from .model.configuration_brivl import BriVLConfig
    from .model.configuration_r2d2 import R2D2Config, R2D2CrossEncoderConfig
    from .model.configuration_wukong import WukongConfig

    for config in (R2D2Config, R2D2CrossEncoderConfig, WukongConfig, BriVLConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _models() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
        AutoModelForPreTraining,
        AutoModelForZeroShotImageClassification,
    )

    from .model.captioning_r2d2 import R2D2ForConditionalGeneration
    from .model.configuration_brivl import BriVLConfig
    from .model.configuration_r2d2 import R2D2Config
    from .model.configuration_wukong import WukongConfig
    from .model.image_classification_r2d2 import R2D2ForImageClassification
    from .model.modeling_brivl import BriVLModel
    from .model.modeling_r2d2 import R2D2Model
    from .model.modeling_wukong import WukongModel
    from .model.pretraining_brivl import BriVLForPreTraining
    from .model.pretraining_r2d2 import R2D2ForPreTraining

    for auto, config, model in (
        (AutoModel, R2D2Config, R2D2Model),
        (AutoModelForZeroShotImageClassification, R2D2Config, R2D2Model),
        (AutoModelForImageClassification, R2D2Config, R2D2ForImageClassification),
        (AutoModelForImageTextToText, R2D2Config, R2D2ForConditionalGeneration),
        (AutoModelForPreTraining, R2D2Config, R2D2ForPreTraining),
        (AutoModel, WukongConfig, WukongModel),
        (AutoModelForZeroShotImageClassification, WukongConfig, WukongModel),
        (AutoModel, BriVLConfig, BriVLModel),
        (AutoModelForZeroShotImageClassification, BriVLConfig, BriVLModel),
        (AutoModelForPreTraining, BriVLConfig, BriVLForPreTraining),
    ):
        auto.register(config, model, exist_ok=True)
    R2D2Model.from_vision_text_pretrained = cast(Any, classmethod(_from_vision_text_pretrained))


def _from_vision_text_pretrained(cls: type, clip: Any, roberta: Any, config: Any = None, **overrides: Any) -> Any:
    """Warm start from an image tower and a Chinese BERT; see `integrations.warm_start.from_vision_text_pretrained`."""
    from .integrations.warm_start import from_vision_text_pretrained

    return from_vision_text_pretrained(cls, clip, roberta, config, **overrides)


def _processors() -> None:
    from transformers import AutoImageProcessor, AutoProcessor

    from .model.configuration_brivl import BriVLConfig
    from .model.configuration_r2d2 import R2D2Config
    from .model.configuration_wukong import WukongConfig
    from .model.image_processing_brivl import BriVLImageProcessor
    from .model.processing_brivl import BriVLProcessor
    from .model.processing_r2d2 import R2D2Processor
    from .model.processing_wukong import WukongProcessor

    AutoProcessor.register(R2D2Config, R2D2Processor, exist_ok=True)
    AutoProcessor.register(WukongConfig, WukongProcessor, exist_ok=True)
    AutoProcessor.register(BriVLConfig, BriVLProcessor, exist_ok=True)
    backends: dict[str, Any] = {
        "pil": BriVLImageProcessor,
        "torchvision": BriVLImageProcessor,
    }  # it has one, which needs neither
    AutoImageProcessor.register(BriVLConfig, image_processor_classes=backends, exist_ok=True)


def _pipelines() -> None:
    from transformers import AutoModel, AutoModelForZeroShotImageClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .model.pipeline_image_text_matching import R2D2ImageTextMatchingPipeline
    from .model.pipeline_zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline

    zero_shot = R2D2ZeroShotImageClassificationPipeline
    for task, pipeline, auto in (
        ("r2d2-zero-shot-image-classification", zero_shot, AutoModelForZeroShotImageClassification),
        ("image-text-matching", R2D2ImageTextMatchingPipeline, AutoModel),
    ):
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline, pt_model=auto, type="multimodal")


_AUTO = "transformers.models.auto"
#: What is registered where, once that module has been imported.
_PENDING = {
    f"{_AUTO}.configuration_auto": _configurations,
    f"{_AUTO}.modeling_auto": _models,
    f"{_AUTO}.processing_auto": _processors,
    "transformers.pipelines": _pipelines,
}


class _Imports(MetaPathFinder):
    """Counts how deep within imports of transformers and of our files the process is, and registers at their end."""

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """As the finders behind this one, with a loader that is counted."""
        if name.partition(".")[0] not in ("transformers", __package__):
            return None
        behind = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for each in behind if (found := each.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with self.within():
                    run(module)
                register_present()

            # of this one loader alone
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    @contextmanager
    def within(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


_IMPORTS = _Imports()


def register_present() -> None:
    """Register with those of transformers' registries that have been imported, and watch for the others."""
    if _IMPORTS.depth:
        return
    while present := next((name for name in _PENDING if name in sys.modules), None):
        register = _PENDING.pop(present)
        with _IMPORTS.within():
            register()
    if _PENDING and _IMPORTS not in sys.meta_path:
        sys.meta_path.insert(0, _IMPORTS)
    elif not _PENDING and _IMPORTS in sys.meta_path:
        sys.meta_path.remove(_IMPORTS)


def register_models() -> None:
    """Register configurations, models and processors now, whatever has been imported."""
    for module in [name for name in _PENDING if name.startswith(_AUTO)]:
        importlib.import_module(module)
    register_present()

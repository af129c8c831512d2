"""Models that search and match: R2D2, Wukong, BriVL, and folders of ONNX graphs."""

from os import PathLike
from typing import Any

import torch
from transformers import AutoProcessor

from ..model.modeling_brivl import BriVLModel
from ..model.modeling_r2d2 import R2D2Model
from ..model.modeling_wukong import WukongModel
from ..model.processing_brivl import BriVLProcessor
from ..model.processing_r2d2 import R2D2Processor
from .dual_encoders import DUAL_ENCODERS, refuse_untaken
from .folders import is_onnx_export
from .loading import config_values, load_processor, load_whole, model_type

#: The classes of models by their `model_type`.
_MODELS: dict[str | None, Any] = {
    "r2d2": R2D2Model,
    "wukong": WukongModel,
    "brivl": BriVLModel,
    **dict.fromkeys(DUAL_ENCODERS, R2D2Model),
}


def two_tower_class(place: str | PathLike, what: str) -> tuple[Any, Any]:
    """The classes of the model and of the processor that a folder or Hub name holds, of models that give one vector per
    picture and text.

    Args:
        place: the folder or name.
        what: can be done with these alone, for the message.

    Raises:
        ValueError: a model of another kind.
        OSError: no such place.
    """
    kind = model_type(place)
    found = _MODELS.get(kind)
    if found is None:
        refuse_untaken(config_values(place), place)
    if found is None or found is WukongModel:
        raise ValueError(f"{place}: only R2D2, PRD2 and BriVL models {what}, and its model_type is {kind!r}")
    return found, R2D2Processor if found is R2D2Model else BriVLProcessor


def load_model(
    model: str | PathLike | R2D2Model, processor: R2D2Processor | None = None, device: str | torch.device | None = None
) -> tuple[R2D2Model, R2D2Processor]:
    """A model in evaluation mode with its processor, from a folder or Hub name, or as given. A dual encoder of
    transformers loads as an R2D2 without a ranker.

    A folder that `r2d2 export` wrote opens as an `R2D2OnnxModel`.

    Raises:
        OSError: no such model.
        ValueError: a loaded model without its processor, or a model of another kind, also one that lacks weights.
    """
    if isinstance(model, str | PathLike):
        reader: Any = AutoProcessor
        if is_onnx_export(model):
            from .onnx_model import R2D2OnnxModel

            network: Any = R2D2OnnxModel.from_pretrained(model)  # which serves as an R2D2Model
        else:
            kind = model_type(model)
            if kind not in _MODELS:
                refuse_untaken(config_values(model), model)
                raise ValueError(
                    f"{model} is a model of type {kind!r}; search needs an R2D2, PRD2, Wukong or BriVL, or a dual "
                    f"encoder ({', '.join(DUAL_ENCODERS)})"
                )
            if kind in DUAL_ENCODERS:
                reader = R2D2Processor
            network = load_whole(_MODELS[kind], model)
        processor = processor or load_processor(reader, model)
    elif processor is None:
        raise ValueError("a loaded model needs its processor: processor=R2D2Processor.from_pretrained(…)")
    else:
        network = model
    return (network.to(device) if device is not None else network).eval(), processor

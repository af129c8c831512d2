"""Dual encoders of transformers as R2D2 models without a ranker, exactly: Chinese-CLIP, CLIP, SigLIP and AltCLIP.

Both towers' weights move over as they are, with what their own class pools and projects; the temperature is
exp(−logit_scale). Cosines and logits are those of the source's class.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_transforms import convert_to_rgb

from ..model.configuration_r2d2 import R2D2Config, text_positions
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import tower_size
from .folders import OWN_TYPES
from .loading_errors import LoadingError, configuration_errors


@dataclass(frozen=True)
class DualEncoderKind:
    """What a class of transformers computes, in the words of `R2D2Config`.

    Args:
        architecture: the class.
        text_pooling: of its text tower.
        projection: of both.
        attend_padding: whether its texts are padded to their full length and the padding is read.
        languages: that the published models of the class read, unless their vocabulary says otherwise.
    """

    architecture: str
    text_pooling: str
    projection: str = "linear"
    attend_padding: bool = False
    languages: tuple[str, ...] = ("en",)

    @property
    def model_class(self) -> Any:
        """Of transformers."""
        return getattr(transformers, self.architecture)


#: The kinds that there are, by `model_type`. SigLIP 2 of a fixed image size is a "siglip" too.
DUAL_ENCODERS = {
    "altclip": DualEncoderKind("AltCLIPModel", "cls", languages=("en", "zh")),
    "chinese_clip": DualEncoderKind("ChineseCLIPModel", "cls", languages=("zh",)),
    "clip": DualEncoderKind("CLIPModel", "pooler"),
    "siglip": DualEncoderKind("SiglipModel", "pooler", projection="none", attend_padding=True),
}
#: Copies of a tower under another name: the original's class computes the same with the same weights, and the rest of
#: this package and of the library knows it.
_ORIGINALS = {"chinese_clip_text_model": "bert", "altclip_vision_model": "clip_vision_model"}
#: Names of the source's tensors that are called otherwise here.
_RENAMED = {"visual_projection.weight": "vision_projection.weight"}
#: What a part's configuration says of the file it stood in.
_INCIDENTAL = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
#: Towers whose images are of sizes of their own.
_NAFLEX = ("siglip2", "fg_clip2")


@dataclass
class Origins:
    """What became of the tensors of a source: its name -> the name here, and its name -> why nothing reads it."""

    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


def require_dual_encoder(values: Mapping[str, Any], place: str | PathLike) -> DualEncoderKind:
    """The kind of dual encoder that a config.json describes.

    Args:
        values: what it says.
        place: where it is, for messages.

    Raises:
        LoadingError: another model, one of images of many sizes (NaFlex), one with code of its own.
    """
    kind = values.get("model_type")
    if kind in DUAL_ENCODERS:
        return DUAL_ENCODERS[kind]
    refuse_untaken(values, place)
    raise LoadingError(f"{place} is a {kind!r}, not one of the dual encoders that are taken over: {_known()}")


def refuse_untaken(values: Mapping[str, Any], place: str | PathLike) -> None:
    """Refuse what may well be a dual encoder, and cannot be taken over; whatever else it is, others say.

    Args:
        values: what its config.json says.
        place: where it is, for messages.

    Raises:
        LoadingError: one of images of many sizes (NaFlex), one with code of its own, another kind with two towers; says
            what to take instead.
    """
    kind = values.get("model_type")
    if kind in _NAFLEX:
        raise LoadingError(
            f"{place} is a {kind!r} of the NaFlex kind, whose images keep their own shape; what is read has one size: "
            "take a SigLIP 2 of a fixed size, such as google/siglip2-base-patch16-224"
        )
    if values.get("auto_map") and kind not in OWN_TYPES:
        raise LoadingError(
            f"{place} is a {kind!r} whose code is its own, not transformers'; what it computes cannot be taken over "
            f"exactly: take a model of transformers' own classes ({_known()}), or use it with sentence-transformers"
        )
    if kind not in (None, *OWN_TYPES, *DUAL_ENCODERS) and {"text_config", "vision_config"} <= values.keys():
        raise LoadingError(f"{place} is a {kind!r}, of which no R2D2 can be made: take one of {_known()}")


def _known() -> str:
    return ", ".join(kind.architecture for kind in DUAL_ENCODERS.values())


def r2d2_config(source: PreTrainedConfig, place: str | PathLike) -> R2D2Config:
    """The configuration of an R2D2 without a ranker that computes what a dual encoder does.

    Its temperature is the source's initial one: the learned one is among the weights (`take_weights`).

    Raises:
        LoadingError: sizes that do not go together.
    """
    kind = DUAL_ENCODERS[source.model_type]
    text, vision = (_original(part.to_dict()) for part in (source.text_config, source.vision_config))
    with configuration_errors(str(place)):
        settings: dict[str, Any] = {
            "vision_config": vision,
            "text_config": text,
            "cross_encoder_config": None,
            "vision_pooling": "pooler",
            "text_pooling": kind.text_pooling,
            "projection": kind.projection,
            "attend_padding": kind.attend_padding,
        }
        projected = getattr(source, "projection_dim", None) or source.vision_config.hidden_size
        scale = getattr(source, "logit_scale_init_value", None) or math.log(10.0)
        config = R2D2Config(**settings, projection_dim=projected, **_temperatures(scale))
        config.max_text_length = text_positions(config.text_config)
    return config


def _original(values: dict[str, Any]) -> dict[str, Any]:
    kind = values["model_type"]
    return {"model_type": _ORIGINALS.get(kind, kind), **{k: v for k, v in values.items() if k not in _INCIDENTAL}}


def _temperatures(logit_scale: float) -> dict[str, float]:
    """τ = exp(−logit_scale) and bounds that it lies within: this package's own, or itself."""
    temperature = math.exp(-logit_scale)
    bounds = {"temperature_min": min(0.001, temperature), "temperature_max": max(0.5, temperature)}
    return {"temperature_init_value": temperature, **bounds}


def take_weights(source: PreTrainedModel, config: R2D2Config) -> tuple[dict[str, Tensor], Origins]:
    """The tensors of a dual encoder under the names of `R2D2Model`, and what became of each.

    Args:
        source: in float32.
        config: of `r2d2_config`; gets the temperature and the logit bias that the source learned.
    """
    tensors: dict[str, Tensor] = {}
    origins = Origins()
    for name, tensor in source.state_dict().items():
        if name == "logit_scale":
            for setting, value in _temperatures(float(tensor)).items():
                setattr(config, setting, value)
            tensors["temperature"] = torch.tensor(config.temperature_init_value)
            origins.used[name] = "temperature = exp(−logit_scale)"
        elif name == "logit_bias":
            config.logit_bias = float(tensor)
            origins.used[name] = "config.logit_bias"
        else:
            origins.used[name] = _RENAMED.get(name, name)
            tensors[origins.used[name]] = tensor.contiguous()
    return tensors, origins


def r2d2_processor(own: Any, config: R2D2Config, place: str | PathLike) -> R2D2Processor:
    """The source's own preprocessing as an `R2D2Processor`: its image processor and its tokenizer, and its padding.
    Transparent pictures are put on what transformers puts them on, which the image processor then says (`background`).

    Args:
        own: the source's processor.
        config: of `r2d2_config`.
        place: where it is, for messages.

    Raises:
        LoadingError: a vocabulary of another size than the text tower's; an image processor that neither squashes nor
            crops the center; padding on the left, which a position table is not made for.
    """
    tokenizer, text = own.tokenizer, config.text_config
    if len(tokenizer) != text.vocab_size:
        raise LoadingError(
            f"{place}: its tokenizer has {len(tokenizer):,} entries, and its text tower {text.vocab_size:,} "
            "embeddings: they do not belong together"
        )
    if tokenizer.padding_side != "right" and not config.attend_padding:
        raise LoadingError(f"{place}: its tokenizer pads on the left, where this text tower has its first positions")
    length = text_positions(text)
    if not config.attend_padding:
        length = min(length, tokenizer.model_max_length)
    tokenizer.model_max_length = length
    if getattr(own.image_processor, "background", None) is None:
        own.image_processor.background = _library_background()
    processor = R2D2Processor(own.image_processor, tokenizer, attend_padding=config.attend_padding)
    try:
        tower_size(processor)
    except ValueError as error:
        raise LoadingError(f"{place}: {error}") from error
    return processor


def _library_background() -> str | None:
    """What the image processors of the installed transformers put transparent pictures on: white; None in 5.20,
    whose drop alpha."""
    transparent = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    options: dict[str, Any] = (
        {"return_numpy": True} if "return_numpy" in inspect.signature(convert_to_rgb).parameters else {}
    )
    return "white" if np.asarray(convert_to_rgb(transparent, **options)).any() else None


__all__ = [
    "DUAL_ENCODERS",
    "DualEncoderKind",
    "Origins",
    "r2d2_config",
    "r2d2_processor",
    "refuse_untaken",
    "require_dual_encoder",
    "take_weights",
]

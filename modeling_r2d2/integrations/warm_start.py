"""Warm start of R2D2 from a CLIP image tower and a Chinese BERT, as the paper initialises it (arXiv 2205.03860)."""

import inspect
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, BertModel, PreTrainedConfig, PreTrainedModel

from ..inference.dual_encoders import DUAL_ENCODERS
from ..inference.loading import layers_left_out, load_config, load_with_report
from ..inference.loading_errors import configuration_errors
from ..model.configuration_r2d2 import IMPLIED_VISION_POOLING, R2D2Config, R2D2TextConfig, ranker_beside

Model = TypeVar("Model", bound=PreTrainedModel)

# What R2D2 leaves out of a tower: nothing reads it.
_LEFT_OUT = ("post_layernorm", "pooler", "head", "layernorm_after_pooling")


def from_vision_text_pretrained(
    cls: type[Model],
    clip: str | PathLike,
    roberta: str | PathLike,
    config: R2D2Config | None = None,
    **overrides: Any,
) -> Model:
    """A model of class `cls` whose towers start from pre-trained ones; all else is random, as in the paper.

    Usually called as a class method: `R2D2ForPreTraining.from_vision_text_pretrained(clip, roberta)`.

    Args:
        clip: local folder or Hub name of an image tower: a whole CLIP, its vision model, or any vision model that
            `AutoConfig` knows (ViT, DINOv2, Swin, ResNet, SigLIP …). Its image size stays.
        roberta: local folder or Hub name of a BERT (`hfl/chinese-roberta-wwm-ext`), with or without a head.
        config: all but the towers: projection width, cross encoders, temperature …; its tower configurations are
            replaced. Default: an R2D2 with six-layer cross encoders as wide as the text tower.
        overrides: arguments of `R2D2Config`, instead of `config`'s.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        ValueError: no vision model or no BERT, or a tower whose weights do not all load; a tower whose type does
            not imply `vision_pooling` (give it).
        OSError: no such folder or repository.
    """
    for name in ("vision_config", "text_config"):
        if name in overrides:
            raise ValueError(f"{name} comes from the pre-trained tower; change it after loading")
    vision_config = load_config(AutoConfig, clip)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    text_config = load_config(AutoConfig, roberta)
    if (kind := text_config.model_type) in (*DUAL_ENCODERS, R2D2Config.model_type):
        raise ValueError(
            f"{roberta} is a {kind!r}, two towers that are aligned already: `--model {roberta}` begins with both and "
            "with their projections (in Python `convert_dual_encoder_to_folder` makes a folder of it); "
            "--roberta takes a BERT alone"
        )
    if text_config.model_type != "bert":
        raise ValueError(f"{roberta} is a {text_config.model_type!r}; the text tower of R2D2 is a 'bert'")
    vision = _load(_vision_class(vision_config, clip), clip, vision_config)
    text = _load(BertModel, roberta, text_config, add_pooling_layer=False)
    with configuration_errors(f"{clip} with {roberta}"):
        kind = vision_config.model_type
        stated = "vision_pooling" in overrides or (config is not None and config.vision_config.model_type == kind)
        if not stated and kind not in IMPLIED_VISION_POOLING:
            raise ValueError(
                f"{clip} is a {kind!r}, of which nothing says what pre-ranking reads: its first token or the mean of "
                "all (vision_pooling='cls' or 'mean'; --vision-pooling)"
            )
        composed = _compose(vision_config, text_config, config, overrides)
        model = cls(composed)
    for name, tower in (("vision_model", vision), ("text_model", text)):
        _copy(tower, getattr(model, name), name)
    return model.eval()


def _vision_class(config: PreTrainedConfig, source: str | PathLike) -> type[PreTrainedModel]:
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"{source}: transformers has no model for a {config.model_type!r} as an image tower")
    tower: Any = MODEL_MAPPING[type(config)]
    tower = tower[0] if isinstance(tower, (list, tuple)) else tower
    if tower.main_input_name != "pixel_values":
        raise ValueError(f"{source} is a {config.model_type!r}, which does not read pixels: no image tower")
    more = [
        parameter.name
        for parameter in inspect.signature(tower.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in ("self", "pixel_values")
    ]
    if more:
        raise ValueError(
            f"{source} is a {config.model_type!r}, which reads more than pixels of one size ({', '.join(more)}): "
            "choose a tower of fixed size"
        )
    return tower


def _load(
    model_class: type[PreTrainedModel], source: str | PathLike, config: PreTrainedConfig, **kwargs: Any
) -> PreTrainedModel:
    """The tower within a checkpoint that may hold more; everything R2D2 reads of it must be there."""
    model, info = load_with_report(model_class, source, config=config, dtype=torch.float32, **kwargs)
    lacking = sorted(name for name in info["missing_keys"] if not set(_LEFT_OUT) & set(name.split(".")))
    if lacking:
        raise ValueError(f"{source} lacks weights of its {model_class.__name__}: {', '.join(lacking[:10])}")
    wrong = [name for name, *_ in info["mismatched_keys"]]
    wrong += layers_left_out(info["unexpected_keys"], model.state_dict())
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} weights do not fit the {model_class.__name__} of its config.json, such as "
            f"{min(wrong)}: another shape, or a layer that it leaves out"
        )
    return model


def _compose(
    vision_config: PreTrainedConfig,
    text_config: PreTrainedConfig,
    config: R2D2Config | None,
    overrides: dict[str, Any],
) -> R2D2Config:
    settings = {} if config is None else config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", "dtype"):
        settings.pop(name, None)
    text = R2D2TextConfig(
        **{k: v for k, v in text_config.to_dict().items() if k not in ("model_type", "architectures")}
    )
    if config is None:
        settings["cross_encoder_config"] = ranker_beside(text, text.hidden_size)
    elif config.vision_config.model_type != vision_config.model_type:
        settings.pop("vision_pooling")  # said of another tower
    return R2D2Config(**{**settings, **overrides, "vision_config": vision_config, "text_config": text})


def _copy(source: nn.Module, target: nn.Module, name: str):
    lacking, _ = target.load_state_dict(source.state_dict(), strict=False)
    if lacking:
        raise ValueError(f"{name}: no pre-trained weights for {', '.join(lacking[:10])}")

"""Official R2D2 and PRD2 checkpoints (arXiv 2205.03860) as models of this package.

Nothing is dropped silently: every tensor of a file is used, or listed with the reason why not, or refused. (The
authors' loader skips tensors of another shape without a word.)
"""

import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from os import PathLike
from typing import Literal, overload

import torch
from torch import Tensor

from ..inference.finite import require_finite_weights
from ..model.configuration_r2d2 import R2D2Config
from ..model.modeling_r2d2 import R2D2Model
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from .checkpoints import CheckpointError, ConversionReport, described, listed, model_of, read_checkpoint
from .official_names import RANKER_PREFIXES, head_name, model_name, official_name, unused_reason

logger = logging.getLogger(__name__)

#: Width of an attention head in every official size; the tensors do not tell it.
HEAD_WIDTH = 64

_CONFIG_HINT = "give the configuration: config=R2D2Config(...), or --config on the command line"


@overload
def convert_official_checkpoint(
    path: str | PathLike,
    config: R2D2Config | None = None,
    *,
    head: bool | None = None,
    allow_unknown: bool = False,
    return_report: Literal[False] = False,
) -> R2D2Model: ...
@overload
def convert_official_checkpoint(
    path: str | PathLike,
    config: R2D2Config | None = None,
    *,
    head: bool | None = None,
    allow_unknown: bool = False,
    return_report: Literal[True],
) -> tuple[R2D2Model, ConversionReport]: ...


def convert_official_checkpoint(
    path: str | PathLike,
    config: R2D2Config | None = None,
    *,
    head: bool | None = None,
    allow_unknown: bool = False,
    return_report: bool = False,
) -> R2D2Model | tuple[R2D2Model, ConversionReport]:
    """Load an official R2D2 or PRD2 checkpoint, pre-trained or fine-tuned, exactly.

    Args:
        path: the `.pth` file: the tensors under the key `model`, or a bare state dict; a `module.` prefix is
            removed. Read as `load_tensors` does: no code of the file runs.
        config: the sizes. None: inferred from the tensors, with attention heads 64 wide as in all official sizes.
            `cross_encoder_config=None` takes the towers of an R2D2 and lists its ranker as unused. In any case
            `two_stage_score` becomes "published", as the authors evaluate.
        head: whether to take an MLM head. None: where the file has one that fits `R2D2ForPreTraining`; True: refuse
            a file without; False: leave it.
        allow_unknown: list tensors of unknown names instead of refusing them.
        return_report: also return what became of every tensor; otherwise unused tensors are logged as a warning.

    Returns:
        The model in evaluation mode, float32: an `R2D2ForPreTraining` (an `R2D2Model` too) with an MLM head, else
        an `R2D2Model`.

    Raises:
        CheckpointError: not a checkpoint, not an R2D2, missing, misshapen or unknown tensors, by name.
        FileNotFoundError: no such file.
    """
    state_dict = read_checkpoint(path)
    require_finite_weights(state_dict, path)
    try:
        config = infer_config(state_dict) if config is None else deepcopy(config)
        tensors, report = convert_state_dict(state_dict, config, head=head, allow_unknown=allow_unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    config.two_stage_score = "published"
    if report.has_head:
        config.tie_word_embeddings = _is_tied(tensors)
    model = model_of(R2D2ForPreTraining if report.has_head else R2D2Model, config, tensors, path)
    if return_report:
        return model, report
    if report.unused or report.unknown:
        logger.warning("%s: %s", path, report)
    return model


def infer_config(state_dict: Mapping[str, Tensor]) -> R2D2Config:
    """The configuration of an official checkpoint, read off its tensors; attention heads are taken as 64 wide.

    Raises:
        CheckpointError: not an R2D2 or PRD2, a tensor missing whose shape is needed, or a width that 64 does not
            divide (then the number of heads cannot be told: give the configuration).
    """
    _refuse_other_models(state_dict)

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in state_dict:
            raise CheckpointError(f"missing tensor: {name}")
        size = state_dict[name].shape
        if len(size) != dimensions:
            raise CheckpointError(f"{name} has shape {tuple(size)}, expected {dimensions} dimensions")
        return size

    def transformer(prefix: str, width: int, inner: str) -> dict[str, int]:
        numbers = [int(m[1]) for name in state_dict if (m := re.match(re.escape(prefix) + r"(\d+)\.", name))]
        if not numbers:
            raise CheckpointError(f"missing tensors: no layer under {prefix}*")
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"{prefix}* is {width} wide, which 64-wide attention heads (as in all official sizes) do not "
                f"divide, and tensors do not tell the number of heads: {_CONFIG_HINT}"
            )
        return {
            "hidden_size": width,
            "num_hidden_layers": max(numbers) + 1,
            "num_attention_heads": width // HEAD_WIDTH,
            "intermediate_size": shape(f"{prefix}0.{inner}.weight", 2)[0],
        }

    vision_width, channels, patch_size, _ = shape("visual_encoder.embeddings.patch_embedding.weight", 4)
    positions = shape("visual_encoder.embeddings.position_embedding.weight", 2)[0]
    side = round((positions - 1) ** 0.5)
    if side < 1 or side * side != positions - 1:
        raise CheckpointError(
            f"visual_encoder.embeddings.position_embedding.weight has {positions} rows, not one for [CLS] and a "
            "square number of patches"
        )
    vocab_size, text_width = shape("text_encoder.embeddings.word_embeddings.weight", 2)
    cross = None
    if any(name.startswith(RANKER_PREFIXES) for name in state_dict):
        cross = transformer("text_joint_layer.encoder.layer.", text_width, "intermediate.dense")
        other = transformer("img_joint_layer.encoder.layer.", text_width, "intermediate.dense")
        if cross != other:
            raise CheckpointError(
                f"text_joint_layer ({cross}) and img_joint_layer ({other}) differ in size; an R2D2 has two alike"
            )
    return R2D2Config(
        vision_config={
            "model_type": "clip_vision_model",
            **transformer("visual_encoder.encoder.layers.", vision_width, "mlp.fc1"),
            "num_channels": channels,
            "patch_size": patch_size,
            "image_size": side * patch_size,
        },
        text_config={
            **transformer("text_encoder.encoder.layer.", text_width, "intermediate.dense"),
            "vocab_size": vocab_size,
            "max_position_embeddings": shape("text_encoder.embeddings.position_embeddings.weight", 2)[0],
            "type_vocab_size": shape("text_encoder.embeddings.token_type_embeddings.weight", 2)[0],
        },
        cross_encoder_config=cross,
        projection_dim=shape("vision_proj.weight", 2)[0],
    )


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    config: R2D2Config,
    *,
    head: bool | None = None,
    allow_unknown: bool = False,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the tensors of an official checkpoint and check that every one the model needs is there and fits.

    Looks at names and shapes alone, so it also works on meta tensors. Arguments as `convert_official_checkpoint`.

    Returns:
        The tensors under the names of `R2D2Model` (`R2D2ForPreTraining` with an MLM head), and the report.

    Raises:
        CheckpointError: see `convert_official_checkpoint`.
    """
    _refuse_other_models(state_dict)
    expected = _expected_shapes(config)
    report = ConversionReport()
    converted: dict[str, Tensor] = {}
    head_parts: dict[str, str] = {}
    for name, tensor in state_dict.items():
        if (reason := unused_reason(name)) is not None:
            report.unused[name] = reason
        elif (part := head_name(name)) is not None:
            head_parts[name] = part
        elif config.cross_encoder_config is None and name.startswith(RANKER_PREFIXES):
            report.unused[name] = "ranker: the given configuration has none"
        elif (target := model_name(name)) in expected:
            report.used[name] = target
            converted[target] = tensor
        else:
            report.unknown.append(name)
    problems = [
        f"misshapen tensor: {name} is {described(state_dict[name])}, expected {expected[target]}"
        + (
            f" (trained at another image size? {_CONFIG_HINT}; the model itself interpolates to other sizes)"
            if name == "visual_encoder.embeddings.position_embedding.weight"
            else ""
        )
        for name, target in report.used.items()
        if tuple(state_dict[name].shape) != expected[target] or not state_dict[name].is_floating_point()
    ]
    missing = [official_name(target) for target in expected if target not in converted]
    if missing:
        problems.append(f"missing tensors: {listed(missing)}")
        if all(name.startswith(RANKER_PREFIXES) for name in missing) and not any(
            name.startswith(RANKER_PREFIXES) for name in state_dict
        ):
            problems.append("this is a PRD2, pre-ranking only: its configuration has cross_encoder_config=None")
    if report.unknown and not allow_unknown:
        problems.append(
            f"unknown tensors: {listed(report.unknown)} (allow_unknown=True, --allow-unknown: leave them out)"
        )
    head_problem = _take_head(state_dict, head_parts, config, head, converted, report)
    if head and head_problem:
        problems.append(f"MLM head: {head_problem}")
    if problems:
        raise CheckpointError("\n".join(problems))
    return converted, report


def _take_head(
    state_dict: Mapping[str, Tensor],
    parts: dict[str, str],
    config: R2D2Config,
    wanted: bool | None,
    converted: dict[str, Tensor],
    report: ConversionReport,
) -> str | None:
    """Move the MLM head into `converted` where it is wanted and fits; returns why not."""
    problem = None
    found: dict[str, Tensor] = {}
    copies: list[str] = []
    for name in sorted(parts, key=len, reverse=True):  # `decoder.bias` before its copy `bias`
        if parts[name] in found:
            copies.append(name)
        else:
            found[parts[name]] = state_dict[name]
    if config.cross_encoder_config is None:
        problem = "a model without a ranker has none"
    elif not parts:
        problem = "the checkpoint has none"
    elif wanted is False:
        problem = "not asked for"
    else:
        width, vocabulary = config.cross_encoder_config.hidden_size, config.text_config.vocab_size
        shapes = {
            "mlm_head.dense.weight": (width, width),
            "mlm_head.dense.bias": (width,),
            "mlm_head.layer_norm.weight": (width,),
            "mlm_head.layer_norm.bias": (width,),
            "mlm_head.decoder.bias": (vocabulary,),
            "mlm_head.decoder.weight": (vocabulary, width),
        }
        for target, shape in shapes.items():
            if target not in found and target != "mlm_head.decoder.weight":  # stored once where it is tied
                problem = f"{target.removeprefix('mlm_head.')} is missing"
            elif target in found and tuple(found[target].shape) != shape:
                problem = f"{target.removeprefix('mlm_head.')} is {tuple(found[target].shape)}, expected {shape}"
    if problem is None:
        report.has_head = True
        converted.update(found)
        if (tied := converted.get("text_model.embeddings.word_embeddings.weight")) is not None:
            converted.setdefault("mlm_head.decoder.weight", tied)
        report.used.update({name: target for name, target in parts.items() if name not in copies})
        report.unused.update(dict.fromkeys(copies, "copy of the MLM head's decoder bias"))
    else:
        report.unused.update(dict.fromkeys(parts, f"MLM head: {problem}"))
    return problem


def _expected_shapes(config: R2D2Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an `R2D2Model`."""
    with torch.device("meta"):
        model = R2D2Model(deepcopy(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_other_models(state_dict: Mapping[str, Tensor]):
    lacking = [
        prefix
        for prefix in ("visual_encoder.", "text_encoder.")
        if not any(name.startswith(prefix) for name in state_dict)
    ]
    if lacking:
        raise CheckpointError(
            f"not an R2D2 or PRD2 checkpoint: no tensor is named {' or '.join(f'{p}*' for p in lacking)}; "
            f"found {listed(state_dict, 5)}"
        )


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    decoder, embeddings = tensors["mlm_head.decoder.weight"], tensors["text_model.embeddings.word_embeddings.weight"]
    return torch.equal(decoder.float(), embeddings.float())

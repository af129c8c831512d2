"""Wukong checkpoints of the authors' PyTorch code (arXiv 2202.06767) as models of this package.

Nothing is dropped silently: every tensor of a file is used, or listed with the reason why not, or refused.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from ..inference.finite import require_finite_weights
from ..model.configuration_wukong import WukongConfig
from ..model.modeling_wukong import WukongModel
from ..model.processing_wukong import WukongProcessor
from ..processing.files.digests import digest_of_file
from ..processing.files.progress import bar
from .checkpoints import (
    CheckpointError,
    ConversionReport,
    StoredOtherwise,
    listed,
    model_of,
    read_checkpoint,
    rename_tensors,
)
from .official import HEAD_WIDTH
from .official_folder import build_tokenizer, refuse_occupied, require_vocabulary, write_converted
from .wukong_names import TEMPERATURE, TRANSPOSED, model_names, unused_reason

logger = logging.getLogger(__name__)

_CONFIG_HINT = "give the configuration: config=WukongConfig(...), or --config on the command line"
#: Width of a token's embedding in the token-wise variants; the global ones have 512 or 768.
TOKEN_WIDTH, GLOBAL_WIDTHS = 256, (512, 768)
_IMAGE_SIZE = 224  # of all published models; a Swin's tensors do not tell it


@overload
def convert_wukong_checkpoint(
    path: str | PathLike,
    config: WukongConfig | None = None,
    *,
    allow_unknown: bool = False,
    return_report: Literal[False] = False,
) -> WukongModel: ...
@overload
def convert_wukong_checkpoint(
    path: str | PathLike,
    config: WukongConfig | None = None,
    *,
    allow_unknown: bool = False,
    return_report: Literal[True],
) -> tuple[WukongModel, ConversionReport]: ...


def convert_wukong_checkpoint(
    path: str | PathLike,
    config: WukongConfig | None = None,
    *,
    allow_unknown: bool = False,
    return_report: bool = False,
) -> WukongModel | tuple[WukongModel, ConversionReport]:
    """Load a Wukong checkpoint of the authors' PyTorch code (CLIP, FILIP or Wukong; ViT or Swin), exactly.

    Args:
        path: the file: the tensors under the key `state_dict`, or a bare state dict; a `module.` prefix is removed.
            Read as `load_tensors` does: no code of the file runs.
        config: the sizes and the similarity. None: inferred; see `infer_wukong_config`.
        allow_unknown: list tensors of unknown names instead of refusing them.
        return_report: also return what became of every tensor; otherwise unused tensors are logged as a warning.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        CheckpointError: not a checkpoint, not a Wukong, missing, misshapen or unknown tensors, by name.
        FileNotFoundError: no such file.
    """
    state_dict = read_checkpoint(path)
    require_finite_weights(state_dict, path)
    try:
        config = infer_wukong_config(state_dict) if config is None else deepcopy(config)
        tensors, report = convert_wukong_state_dict(state_dict, config, allow_unknown=allow_unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors.setdefault("temperature", torch.tensor(config.temperature_init_value))
    model = model_of(WukongModel, config, tensors, path)
    if return_report:
        return model, report
    if report.unused or report.unknown:
        logger.warning("%s: %s", path, report)
    return model


def is_wukong_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a Wukong checkpoint (and not of an R2D2, whose towers are called otherwise)."""
    return all(any(name.startswith(prefix) for name in state_dict) for prefix in ("visual.", "transformer."))


def convert_wukong_state_dict(
    state_dict: Mapping[str, Tensor], config: WukongConfig, *, allow_unknown: bool = False
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the tensors of a checkpoint and check that every one the model needs is there and fits.

    A `logit_scale` (the logarithm of 1/temperature, as in CLIP) is taken where the temperature lies within the
    configuration's bounds; without one the temperature starts at `config.temperature_init_value`.

    Returns:
        The tensors under the names of `WukongModel`, and the report.

    Raises:
        CheckpointError: see `convert_wukong_checkpoint`.
    """
    _refuse_other_models(state_dict)
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in WukongModel(deepcopy(config)).state_dict().items()}
    report = ConversionReport()
    kept: dict[str, Tensor] = {}
    temperature: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if (reason := unused_reason(name)) is not None:
            report.unused[name] = reason
        elif TEMPERATURE.fullmatch(name):
            _take_temperature(name, tensor, config, temperature, report)
        else:
            kept[name] = tensor
    del expected["temperature"]
    converted = rename_tensors(kept, expected, model_names, _TRANSPOSED, report, allow_unknown)
    converted.update(temperature)
    return converted, report


_TRANSPOSED = StoredOtherwise(TRANSPOSED, lambda shape: shape[::-1], Tensor.t)


def _take_temperature(
    name: str, tensor: Tensor, config: WukongConfig, converted: dict[str, Tensor], report: ConversionReport
):
    if tensor.is_meta:
        report.used[name] = "temperature"
        return
    temperature = math.exp(-float(tensor)) if tensor.numel() == 1 else math.nan
    if config.temperature_min <= temperature <= config.temperature_max:
        report.used[name] = "temperature"
        converted["temperature"] = torch.tensor(temperature)
    else:
        report.unused[name] = (
            f"not the logarithm of 1/temperature within [{config.temperature_min}, {config.temperature_max}]: the "
            f"temperature starts at {config.temperature_init_value}"
        )


def infer_wukong_config(state_dict: Mapping[str, Tensor]) -> WukongConfig:
    """The configuration of a checkpoint, read off its tensors.

    Not in the tensors, so taken from the published configurations: attention heads 64 wide; similarity token-wise
    where there is a token reduction or the embedding is 256 wide, global where it is 512 or 768; 224-pixel images for
    a Swin. `text_padding` becomes "zero", which is how the authors' code compares.

    Raises:
        CheckpointError: not a Wukong, a tensor missing whose shape is needed, or a width that tells no similarity
            (then give the configuration).
    """
    _refuse_other_models(state_dict)

    def shape(*names: str) -> torch.Size:
        for name in names:
            if name in state_dict:
                return state_dict[name].shape
        raise CheckpointError(f"missing tensor: {names[0]}")

    vocabulary, width = shape("transformer.token_embedding.weight", "token_embedding.weight")
    projection = shape("transformer.text_projection", "text_projection")[1]
    reduction = [
        name for name in state_dict if re.search(r"token_(learner|reduction)\.attention_maps\.1\.weight", name)
    ]
    if reduction or projection == TOKEN_WIDTH:
        similarity: dict[str, Any] = {"similarity": "token-wise", "text_padding": "zero"}
    elif projection in GLOBAL_WIDTHS:
        similarity = {"similarity": "global"}
    else:
        raise CheckpointError(
            f"embeddings are {projection} wide: {TOKEN_WIDTH} (token-wise) or {listed(map(str, GLOBAL_WIDTHS))} "
            f"(global) would tell the similarity, this does not; {_CONFIG_HINT}"
        )
    if reduction:
        name = reduction[0]
        similarity["token_reduction"] = shape(name)[0]
        similarity["token_reduction_groups"] = projection // shape(name.replace("maps.1", "maps.0"))[1]
    vision = _swin if "visual.patch_embed.proj.weight" in state_dict else _vit
    positions = shape("transformer.positional_embedding", "positional_embedding")[0]
    return WukongConfig(
        vision_config=vision(state_dict, shape),
        text_config={
            **_transformer(state_dict, "transformer.resblocks.", width, shape),
            "vocab_size": vocabulary,
            "max_position_embeddings": positions,
            # [CLS] and [SEP] of the official vocabulary; nothing reads them, but they must lie within it
            "bos_token_id": min(101, vocabulary - 1),
            "eos_token_id": min(102, vocabulary - 1),
        },
        max_text_length=positions,
        projection_dim=projection,
        **similarity,
    )


def _transformer(names: Mapping[str, Tensor], prefix: str, width: int, shape: Callable) -> dict[str, int]:
    numbers = _numbers(names, re.escape(prefix) + r"(\d+)\.")
    if not numbers:
        raise CheckpointError(f"missing tensors: no layer under {prefix}*")
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{prefix}* is {width} wide, which 64-wide attention heads do not divide, and tensors do not tell the "
            f"number of heads: {_CONFIG_HINT}"
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": max(numbers) + 1,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shape(f"{prefix}0.mlp.c_fc.weight")[0],
    }


def _numbers(names: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _vit(state_dict: Mapping[str, Tensor], shape: Callable) -> dict[str, int | str]:
    width, channels, patch, _ = shape("visual.conv1.weight")
    positions = shape("visual.positional_embedding")[0]
    side = math.isqrt(positions - 1)
    if side < 1 or side * side != positions - 1:
        raise CheckpointError(
            f"visual.positional_embedding has {positions} rows, not one for [CLS] and a square number of patches"
        )
    return {
        "model_type": "clip_vision_model",
        **_transformer(state_dict, "visual.transformer.resblocks.", width, shape),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
    }


def _swin(state_dict: Mapping[str, Tensor], shape: Callable) -> dict:
    width, channels, patch, _ = shape("visual.patch_embed.proj.weight")
    depths, heads = [], []
    for stage in range(len(_numbers(state_dict, r"visual\.layers\.(\d+)\."))):
        prefix = f"visual.layers.{stage}.blocks."
        depths.append(len(_numbers(state_dict, re.escape(prefix) + r"(\d+)\.")))
        heads.append(shape(f"{prefix}0.attn.relative_position_bias_table")[1])
    table = shape("visual.layers.0.blocks.0.attn.relative_position_bias_table")[0]
    return {
        "model_type": "swin",
        "embed_dim": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": _IMAGE_SIZE,
        "depths": depths,
        "num_heads": heads,
        "window_size": (math.isqrt(table) + 1) // 2,  # a table has (2·window − 1)² rows
        "mlp_ratio": shape("visual.layers.0.blocks.0.mlp.fc1.weight")[0] / width,
    }


def _refuse_other_models(state_dict: Mapping[str, Tensor]):
    if not is_wukong_state_dict(state_dict):
        raise CheckpointError(
            f"not a Wukong checkpoint: it has tensors named visual.* and transformer.*, found {listed(state_dict, 5)}"
        )


def convert_wukong_to_folder(
    checkpoint: str | PathLike,
    output_dir: str | PathLike,
    *,
    vocab: str | PathLike | None = None,
    config: WukongConfig | None = None,
    allow_unknown: bool = False,
    overwrite: bool = False,
    source: str | None = None,
    exif_transpose: bool = True,
) -> ConversionReport:
    """Convert a Wukong checkpoint into a folder that `AutoModel` and `AutoProcessor` load.

    Args:
        checkpoint: see `convert_wukong_checkpoint`.
        config: see `convert_wukong_checkpoint`.
        allow_unknown: see `convert_wukong_checkpoint`.
        output_dir: as `convert_to_folder` of an R2D2.
        vocab: as `convert_to_folder` of an R2D2.
        overwrite: as `convert_to_folder` of an R2D2.
        source: as `convert_to_folder` of an R2D2.
        exif_transpose: as `convert_to_folder` of an R2D2.

    Raises:
        FileExistsError: the folder already holds a model.
        NotADirectoryError: `output_dir` is a file.
        CheckpointError, FileNotFoundError: see `convert_wukong_checkpoint`.
        ValueError: a vocabulary that does not belong to the checkpoint.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    refuse_occupied(output_dir, overwrite)
    tokenizer = build_tokenizer(vocab)
    shown = bar(doing="converting", total=2, unit="steps")
    model, report = convert_wukong_checkpoint(checkpoint, config, allow_unknown=allow_unknown, return_report=True)
    config = model.config
    require_vocabulary(tokenizer, config)
    stored = {} if exif_transpose else {"exif_transpose": False}
    processor = WukongProcessor.build(tokenizer, config.vision_config.image_size, config.max_text_length, **stored)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shown.update()
    with shown:
        write_converted(output_dir, model, processor, _card(output_dir, config, report, checkpoint, source, parameters))
    return report


def _card(
    folder: Path, config: WukongConfig, report: ConversionReport, checkpoint: Path, source: str | None, parameters: int
) -> ModelCard:
    data = ModelCardData(
        language="zh",
        license="other",
        license_name="not-stated-in-the-checkpoint",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["wukong", "vision-language", "image-text-retrieval", "chinese", "custom_code"],
    )
    name = folder.resolve().name
    reduced = "" if config.token_reduction is None else f", {config.token_reduction} reduced image tokens"
    left = [
        f"{reason}: {', '.join(f'`{each}`' for each in names)}" for reason, names in report.unused_by_reason().items()
    ]
    temperature = (
        "from the checkpoint"
        if "temperature" in report.used.values()
        else f"not in the checkpoint: {config.temperature_init_value}, the initial value, not a trained one"
    )
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {name}

A Wukong of the architecture of *Wukong: A 100 Million Large-scale Chinese Cross-modal Pre-training Benchmark*
([arXiv 2202.06767](https://arxiv.org/abs/2202.06767)). Nothing was trained here: the weights were converted, value by
value, from a checkpoint in the authors' PyTorch format. The conversion checks names and shapes, not authorship:
compare the SHA-256 with the authors' file.

| | |
|---|---|
| file | `{checkpoint.name}` |
| SHA-256 | `{digest_of_file(checkpoint, "sha256")}` |
| obtained from | {source or "not stated by whoever converted it"} |
| parameters | {parameters:,} |
| image tower | {config.vision_config.model_type}, {config.vision_config.image_size} px |
| similarity | {config.similarity}, {config.projection_dim} dimensions{reduced} |
| temperature | {temperature} |

**License:** the checkpoint states none, so this card does not either. Check the terms under which the authors release
their weights before you use or share this model.

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images=Image.open("picture.png"), text=["一只猫", "一只狗"], return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(-1))
```

{len(report.used)} tensors of the checkpoint are used. Not used: {"; ".join(left) if left else "none"}.
"""
    )


__all__ = [
    "convert_wukong_checkpoint",
    "convert_wukong_state_dict",
    "convert_wukong_to_folder",
    "infer_wukong_config",
    "is_wukong_state_dict",
]

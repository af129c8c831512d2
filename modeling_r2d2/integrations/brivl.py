"""BriVL checkpoints of the authors' PyTorch code (arXiv 2103.06561) as models of this package.

Nothing is dropped silently: every tensor of a file is used, or listed with the reason why not, or refused.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from ..inference.finite import require_finite_weights
from ..model.configuration_brivl import BriVLConfig
from ..model.modeling_brivl import BriVLModel
from ..model.processing_brivl import BriVLProcessor
from ..processing.files.digests import digest_of_file
from ..processing.files.progress import bar
from .brivl_names import CONVOLUTION, BriVLNames, of_momentum, unused_reason
from .checkpoints import (
    CheckpointError,
    ConversionReport,
    StoredOtherwise,
    listed,
    model_of,
    read_checkpoint,
    rename_tensors,
)
from .official_folder import build_tokenizer, refuse_occupied, require_vocabulary, write_converted

logger = logging.getLogger(__name__)

_FLATTENED = StoredOtherwise(CONVOLUTION, lambda shape: (*shape, 1, 1), lambda tensor: tensor.flatten(1))
_PRESET = "brivl-b5-380"
_HINT = (
    f"the sizes are those of {_PRESET}, since tensors tell neither the side of the pictures nor the heads: give the "
    "configuration of another model (config=BriVLConfig(...), or --config on the command line)"
)


@overload
def convert_brivl_checkpoint(
    path: str | PathLike,
    config: BriVLConfig | None = None,
    *,
    momentum: bool = False,
    allow_unknown: bool = False,
    return_report: Literal[False] = False,
) -> BriVLModel: ...
@overload
def convert_brivl_checkpoint(
    path: str | PathLike,
    config: BriVLConfig | None = None,
    *,
    momentum: bool = False,
    allow_unknown: bool = False,
    return_report: Literal[True],
) -> tuple[BriVLModel, ConversionReport]: ...


def convert_brivl_checkpoint(
    path: str | PathLike,
    config: BriVLConfig | None = None,
    *,
    momentum: bool = False,
    allow_unknown: bool = False,
    return_report: bool = False,
) -> BriVLModel | tuple[BriVLModel, ConversionReport]:
    """Load a BriVL checkpoint of the authors' PyTorch code, exactly.

    Args:
        path: the file: the tensors under the key `learnable`, or a bare state dict. Read as `load_tensors` does: no
            code of the file runs.
        config: the sizes. None: those of the authors, on pictures of 380 pixels; 456 is another preset.
        momentum: take the momentum copies, which were the teacher of the authors' training, and not the encoders.
        allow_unknown: list tensors of unknown names instead of refusing them.
        return_report: also return what became of every tensor; otherwise unused tensors are logged as a warning.

    Returns:
        The model in evaluation mode, float32. Its training goes on with what the authors trained, whatever `config`
        says; `model.freeze_lower_layers(False)` lets all of it train.

    Raises:
        CheckpointError: not a checkpoint, not a BriVL, missing, misshapen or unknown tensors, by name.
        FileNotFoundError: no such file.
    """
    state_dict = read_checkpoint(path)
    require_finite_weights(state_dict, path)
    given = config is not None
    config = BriVLConfig.from_preset(_PRESET) if config is None else deepcopy(config)
    config.freeze_lower_layers = True
    try:
        tensors, report = convert_brivl_state_dict(state_dict, config, momentum=momentum, allow_unknown=allow_unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}" + ("" if given else f"\n{_HINT}")) from None
    tensors["temperature"] = torch.tensor(config.temperature_init_value)
    model = model_of(BriVLModel, config, tensors, path)
    if return_report:
        return model, report
    if report.unused or report.unknown:
        logger.warning("%s: %s", path, report)
    return model


def is_brivl_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a BriVL checkpoint."""
    return all(any(name.startswith(prefix) for name in state_dict) for prefix in ("imgencoder.", "textencoder."))


def convert_brivl_state_dict(
    state_dict: Mapping[str, Tensor], config: BriVLConfig, *, momentum: bool = False, allow_unknown: bool = False
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the tensors of a checkpoint and check that every one the model needs is there and fits.

    Args:
        state_dict: the checkpoint's.
        config: of the model.
        momentum: see `convert_brivl_checkpoint`.
        allow_unknown: see `convert_brivl_checkpoint`.

    Returns:
        The tensors under the names of `BriVLModel`, all but its temperature, which no checkpoint has, and the report.

    Raises:
        CheckpointError: see `convert_brivl_checkpoint`.
    """
    if not is_brivl_state_dict(state_dict):
        raise CheckpointError(
            "not a BriVL checkpoint: it has tensors named imgencoder.* and textencoder.*, found "
            f"{listed(state_dict, 5)}"
        )
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in BriVLModel(deepcopy(config)).state_dict().items()}
    del expected["temperature"]
    report = ConversionReport()
    kept: dict[str, Tensor] = {}
    others = (
        "the encoder itself; taken are the momentum copies"
        if momentum
        else ("momentum copy, the teacher of the authors' training (momentum=True, --momentum takes these)")
    )
    for name, tensor in state_dict.items():
        original = of_momentum(name)
        if (reason := unused_reason(original or name)) is not None:
            report.unused[name] = reason
        elif (original is not None) != momentum:
            report.unused[name] = others
        else:
            kept[name] = tensor
    if momentum and not kept:
        raise CheckpointError("it has no momentum copies (imgencoder_mom.*, textencoder_mom.*)")
    names = BriVLNames(original or name for name in kept for original in [of_momentum(name)])
    plain = {of_momentum(name) or name: tensor for name, tensor in kept.items()}
    converted = rename_tensors(plain, expected, names.of, _FLATTENED, report, allow_unknown)
    if momentum:
        back = {of_momentum(name): name for name in kept}
        report.used = {back[name]: target for name, target in report.used.items()}
        report.unknown = [back[name] for name in report.unknown]
    return converted, report


def convert_brivl_to_folder(
    checkpoint: str | PathLike,
    output_dir: str | PathLike,
    *,
    vocab: str | PathLike | None = None,
    config: BriVLConfig | None = None,
    momentum: bool = False,
    allow_unknown: bool = False,
    overwrite: bool = False,
    source: str | None = None,
    exif_transpose: bool = True,
) -> ConversionReport:
    """Convert a BriVL checkpoint into a folder that `AutoModel` and `AutoProcessor` load.

    Args:
        checkpoint: see `convert_brivl_checkpoint`.
        config: see `convert_brivl_checkpoint`.
        momentum: see `convert_brivl_checkpoint`.
        allow_unknown: see `convert_brivl_checkpoint`.
        output_dir: as `convert_to_folder` of an R2D2.
        vocab: as `convert_to_folder` of an R2D2.
        overwrite: as `convert_to_folder` of an R2D2.
        source: as `convert_to_folder` of an R2D2.
        exif_transpose: as `convert_to_folder` of an R2D2.

    Raises:
        FileExistsError: the folder already holds a model.
        NotADirectoryError: `output_dir` is a file.
        CheckpointError, FileNotFoundError: see `convert_brivl_checkpoint`.
        ValueError: a vocabulary that does not belong to the checkpoint.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    refuse_occupied(output_dir, overwrite)
    tokenizer = build_tokenizer(vocab)
    shown = bar(doing="converting", total=2, unit="steps")
    model, report = convert_brivl_checkpoint(
        checkpoint, config, momentum=momentum, allow_unknown=allow_unknown, return_report=True
    )
    require_vocabulary(tokenizer, model.config)
    stored = {} if exif_transpose else {"exif_transpose": False}
    processor = BriVLProcessor.of(model.config, tokenizer, **stored)
    shown.update()
    with shown:
        write_converted(output_dir, model, processor, _card(output_dir, model, report, checkpoint, source, momentum))
    return report


def _card(
    folder: Path, model: BriVLModel, report: ConversionReport, checkpoint: Path, source: str | None, momentum: bool
) -> ModelCard:
    config: BriVLConfig = model.config
    data = ModelCardData(
        language="zh",
        license="other",
        license_name="not-stated-by-the-authors",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["brivl", "vision-language", "image-text-retrieval", "chinese", "custom_code"],
    )
    name = folder.resolve().name
    left = []
    for reason, names in report.unused_by_reason().items():
        shown = ", ".join(f"`{each}`" for each in names[:3])
        left.append(f"{reason}: {shown}{f' … ({len(names)} tensors)' if len(names) > 3 else ''}")
    cells = config.vision_config.box_grid
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {name}

A BriVL (WenLan) of the architecture of *WenLan: Bridging Vision and Language by Large-Scale Multi-Modal Pre-Training*
([arXiv 2103.06561](https://arxiv.org/abs/2103.06561)) and *Towards artificial general intelligence via a multimodal
foundation model* (Nature Communications, 2022). Nothing was trained here: the weights were converted, value by value,
from a checkpoint in the authors' PyTorch format. The conversion checks names and shapes, not authorship: compare the
SHA-256 with the authors' file.

| | |
|---|---|
| file | `{checkpoint.name}` |
| SHA-256 | `{digest_of_file(checkpoint, "sha256")}` |
| obtained from | {source or "not stated by whoever converted it"} |
| taken | {"the momentum copies" if momentum else "the encoders, not their momentum copies"} |
| parameters | {sum(parameter.numel() for parameter in model.parameters()):,} |
| pictures | {config.vision_config.image_size} px, squashed; without boxes, {cells} × {cells} and the whole |
| texts | padded to {config.max_text_length} tokens, padding is read |
| embeddings | {config.projection_dim} dimensions |
| temperature | not in the checkpoint: {config.temperature_init_value}, that of the authors' training |

**License:** the authors published their code under MIT; of the weights they state no licence, so this card does not
either. Ask the authors before you use or share this model.

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
    "convert_brivl_checkpoint",
    "convert_brivl_state_dict",
    "convert_brivl_to_folder",
    "is_brivl_state_dict",
]

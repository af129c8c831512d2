"""LoRA and DoRA through PEFT: make, save, load, merge."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..inference.loading import one_line_errors
from ..processing.files.writing import make_readable, save_safetensors
from .parameters import matches, plain_name
from .settings import LoRASettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Parameters that train whole beside the adapters, in PEFT's folder; PEFT itself does not know the file.
EXTRA_WEIGHTS = "extra_weights.safetensors"


def require_peft():
    """The PEFT library.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA and DoRA come from PEFT: pip install 'modeling-r2d2[peft]'") from error
    return peft


def adaptable_modules(model: nn.Module, patterns: Iterable[str] | None = None) -> list[str]:
    """Names of the linear layers and convolutions that an adapter can be put on: those that match, or else all whose
    weight is not frozen. A vocabulary projection tied to the embeddings, the classifier's head, grouped convolutions
    and torch's own attention, which reads its weights past its layers (SigLIP's head), get none.

    Raises:
        ValueError: a pattern that matches no such layer, or no layer at all.
    """
    embedding = getattr(model, "get_input_embeddings", lambda: None)() if hasattr(model, "text_model") else None
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    past = {f"{name}.out_proj" for name in attentions}
    possible = {}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear)
        if not linear and not (isinstance(module, nn.Conv2d) and module.groups == 1):
            continue
        if name == "classifier" or name in past or (embedding is not None and module.weight is embedding.weight):
            continue
        possible[name] = module
    if patterns is None:
        chosen = [name for name, module in possible.items() if module.weight.requires_grad]
    else:
        chosen = []
        for pattern in patterns:
            found = [name for name in possible if name == pattern or matches(name, pattern)]
            if not found:
                raise ValueError(f"LoRA target {pattern!r} matches no linear layer or convolution of the model")
            chosen += [name for name in found if name not in chosen]
    if not chosen:
        raise ValueError("there is no layer to adapt: all are frozen")
    return chosen


def add_adapters(model: "PreTrainedModel", settings: LoRASettings) -> "PeftModel":
    """Freeze the model and put adapters on it; they begin as no change at all.

    A part frozen before by `freeze` gets no adapter, unless `settings.targets` names it, and stays frozen whatever
    `train_also` says.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: targets or `train_also` that match nothing.
    """
    peft = require_peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=adaptable_modules(model, settings.targets),
    )
    also = []
    for pattern in settings.train_also:
        found = [(name, p.requires_grad) for name, p in model.named_parameters() if matches(name, pattern)]
        if not found and pattern not in LoRASettings().train_also:  # a captioner has neither of these
            raise ValueError(f"train_also {pattern!r} matches no parameter")
        also += [name for name, trains in found if trains]
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if plain_name(name) in also:
            parameter.requires_grad_(True)
    return adapted


def extra_weights(model: "PeftModel") -> dict[str, torch.Tensor]:
    """Parameters that train whole, by their plain names: what an adapter does not hold."""
    return {
        plain_name(name): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


def save_extra_weights(model: "PeftModel", folder: Path | str) -> None:
    """Write `extra_weights` beside an adapter."""
    if extra := extra_weights(model):
        save_safetensors({name: tensor.clone() for name, tensor in extra.items()}, Path(folder) / EXTRA_WEIGHTS)


@torch.no_grad()
def load_extra_weights(model: nn.Module, folder: Path | str) -> None:
    """Read what `save_extra_weights` wrote, if it wrote anything, into an adapted or a plain model.

    Raises:
        ValueError: a parameter that the model does not have.
    """
    path = Path(folder) / EXTRA_WEIGHTS
    if not path.is_file():
        return
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    with one_line_errors(path, "adapter"):
        weights = load_file(path)
    for name, value in weights.items():
        if name not in parameters:
            raise ValueError(f"{path}: the model has no parameter {name!r}; the adapter belongs to another class")
        if value.shape != parameters[name].shape:
            raise ValueError(f"{path}: {name} is {tuple(value.shape)}, in the model {tuple(parameters[name].shape)}")
        parameters[name].copy_(value)


def save_adapter(model: "PeftModel", folder: Path | str) -> None:
    """Write the adapter, and what trains beside it, to a folder that `load_adapter` and PEFT's own
    `PeftModel.from_pretrained` read. (PEFT alone leaves the temperature as it was: the order of scores is the same.)"""
    card = Path(folder) / "README.md"
    written_before = card.exists()
    model.save_pretrained(str(folder))
    if not written_before:
        card.unlink(missing_ok=True)  # PEFT's form, to be filled in by hand: `r2d2 push` would publish it as it is
    save_extra_weights(model, folder)
    make_readable(folder, "adapter_model.*")


def load_adapter(model: "PreTrainedModel", folder: Path | str, **kwargs: Any) -> "PeftModel":
    """The model (as `AutoModel` loads it) with a saved adapter on it, and with the parameters that trained beside it.

    `kwargs` go to `PeftModel.from_pretrained` (`is_trainable=True` to train on).

    Raises:
        ImportError: PEFT is not installed.
        OSError: no such folder, or no adapter in it.
        ValueError: an adapter of another model, or what trained beside it is; a damaged file, a pickle.
    """
    peft, folder = require_peft(), Path(folder)
    weights = folder / peft.utils.SAFETENSORS_WEIGHTS_NAME
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise FileNotFoundError(f"{folder} is no adapter: it has no adapter_config.json or no {weights.name}")
    with one_line_errors(folder, "adapter"):
        held = {name: value.shape for name, value in load_file(weights).items()}
        adapted = peft.PeftModel.from_pretrained(model, str(folder), **kwargs)
    state = peft.get_peft_model_state_dict(adapted, adapter_name=kwargs.get("adapter_name", "default"))
    if wrong := sorted(held.items() ^ {name: value.shape for name, value in state.items()}.items()):
        raise ValueError(
            f"{folder}: the adapter does not fit a {type(model).__name__} in {len(wrong)} weights, such as "
            f"{wrong[0][0]}: it was made on another model"
        )
    load_extra_weights(adapted, folder)
    return adapted


def merge_adapter(model: "PeftModel") -> "PreTrainedModel":
    """The plain model with the adapters added into its weights; the adapted one is used up."""
    return model.merge_and_unload(safe_merge=True)


__all__ = [
    "EXTRA_WEIGHTS",
    "adaptable_modules",
    "add_adapters",
    "load_adapter",
    "load_extra_weights",
    "merge_adapter",
    "save_adapter",
    "save_extra_weights",
]

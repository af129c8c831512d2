"""Which model and preprocessing made something: what indexes, calibrations and exports are held against."""

import hashlib
import json
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.modeling_r2d2 import RANKER
from ..processing.files.digests import digest_of_file
from ..processing.files.images import turns_upright

#: What of a configuration, beside those of the parts, changes the embeddings.
_IDENTIFYING = (
    "projection_dim",
    "vision_pooling",
    "max_text_length",
    "similarity",
    "token_reduction",
    "text_padding",
)
#: The same of settings that came later: they count where they are not what every earlier model has.
_IDENTIFYING_UNLESS: dict[str, Any] = {
    "text_pooling": "cls",
    "projection": "affine",
    "attend_padding": False,
}

#: What of a part's configuration does not change what it computes.
_INCIDENTAL = {"transformers_version", "dtype", "architectures", "auto_map", "name_or_path"}


class OtherModelError(ValueError):
    """The index was made by another model, or with other preprocessing."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model and preprocessing an index belongs to.

    Args:
        weights: digest of every tensor and of what the configuration says about the networks.
        preprocessing: digest of the image processor's settings and of the tokenizer.
        source: where the model was loaded from, for people.
        revision: of the source.
    """

    weights: str
    preprocessing: str
    source: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, processor: Any, towers_alone: bool = False) -> "ModelIdentity":
        """The identity of a loaded model, or of all of it but its ranker, and its processor; reads every weight
        once."""
        images, kind = processor.image_processor.to_dict(), type(processor)
        # as a saved folder has it: a model is the same before and after it is saved, or converted
        images.setdefault("auto_map", {"AutoProcessor": f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"})
        preprocessing = {
            "image": {k: v for k, v in images.items() if not k.startswith("_") and "processor" not in k},
            "exif_transpose": turns_upright(processor),
            "tokenizer": _settings_of(processor.tokenizer),
            "max_length": processor.tokenizer.model_max_length,
            **({"attend_padding": True} if getattr(processor, "attend_padding", False) else {}),
        }
        return cls(
            weights=identity_of_weights(model, RANKER if towers_alone else ()),
            preprocessing=hashlib.blake2b(canonical(preprocessing), digest_size=16).hexdigest(),
            source=_lasting(getattr(model.config, "_name_or_path", None)),
            revision=getattr(model.config, "_commit_hash", None),
        )

    def refuse_other(self, given: "ModelIdentity", place: Path, remake: str) -> None:
        """Raise unless `given` computes what this one did.

        Args:
            place: of the index.
            remake: the command that makes it anew with the given model.

        Raises:
            OtherModelError: says what differs, and what to do.
        """
        for what, made, now in (
            ("model", self.weights, given.weights),
            ("preprocessing (image processor or tokenizer)", self.preprocessing, given.preprocessing),
        ):
            if made != now:
                before = "" if what == "model" else ", or before photographs were turned upright"
                raise OtherModelError(
                    f"{place} was made with another {what}{before}: by {self.source or 'a model without a name'} "
                    f"({made[:12]}), and {given.source or 'the model given'} is {now[:12]}. Vectors of two models "
                    "cannot be compared: open the index with its own model (and dtype), or make it anew with this one: "
                    f"{remake}"
                )

    def place(self, index: Path) -> str:
        """Where the model is: a folder, or a name of the Hub.

        Raises:
            ValueError: it was loaded from nowhere, or its folder is no longer there.
        """
        if self.source is None:
            raise ValueError(f"{index} does not say where its model is: give it with --model DIR (model=)")
        if self.is_gone:
            raise ValueError(
                f"{index}: its model was in {self.source}, and there is no such folder any more: give the place where "
                "it is now with --model DIR (model=); the index remembers it"
            )
        return self.source

    @property
    def is_gone(self) -> bool:
        """Whether the model was in a folder that is no longer there."""
        return self.source is not None and os.path.isabs(self.source) and not os.path.isdir(self.source)


def _lasting(source: str | None) -> str | None:
    """A folder by its full path, so that the index finds its model from anywhere; other names as they are."""
    return os.path.abspath(source) if source and os.path.isdir(source) else source or None


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def _settings_of(tokenizer: Any) -> dict[str, Any]:
    """All that tokens depend on."""
    if tokenizer.is_fast:
        held = json.loads(tokenizer.backend_tokenizer.to_str())
        # the last call's padding and truncation stay in the tokenizer, and are none of its own
        return {name: value for name, value in held.items() if name not in ("padding", "truncation")}
    # one that is written in Python, as SigLIP's: where its files lie is none of it
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if isinstance(value, bool)}
    held = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": settings}
    if (pieces := getattr(tokenizer, "sp_model", None)) is not None:
        held["model"] = hashlib.blake2b(pieces.serialized_model_proto(), digest_size=16).hexdigest()
    return held


def identity_of_weights(model: PreTrainedModel, but: tuple[str, ...] = ()) -> str:
    """`ModelIdentity.weights` of a loaded model, or of all but the parts named; reads every weight once."""
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if (name.endswith("_config") and not (but and name == "cross_encoder_config"))
        or name in _IDENTIFYING
        or (name in _IDENTIFYING_UNLESS and value != _IDENTIFYING_UNLESS[name])
    }
    # neither tower nor ranker reads the heads of pre-training
    left_out = tuple(f"{part}." for part in ("mlm_head", "feature_heads", *but))
    return weights_digest(model, leave_out=left_out, beside=canonical(_without_incidental(config)))


def weights_digest(model: torch.nn.Module, leave_out: tuple[str, ...] = (), beside: bytes = b"") -> str:
    """A digest of the weights of any module, wherever they are.

    Args:
        model: whose every weight is read once.
        leave_out: beginnings of names that do not count.
        beside: what else counts.
    """
    digest = hashlib.blake2b(beside, digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(leave_out):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes_of(tensor))
    return digest.hexdigest()


#: What a model computes with; by-products of training do not make another model of it.
_MODEL_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*token*.json",
    "vocab.*",
    "*processor_config.json",
)


def identity_of_folder(place: str | PathLike) -> str | None:
    """A digest of a model folder's weights, configuration, tokenizer and processor, without loading them; None for a
    name of the Hub."""
    folder = Path(place)
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}:{digest_of_file(path)}".encode())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _without_incidental(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _without_incidental(each)
            for name, each in value.items()
            if name not in _INCIDENTAL and not str(name).startswith("_")
        }
    return value

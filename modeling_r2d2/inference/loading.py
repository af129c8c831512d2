"""The one place that loads models, processors, tokenizers, configurations and pipelines.

Nothing that is loaded brings code of its own unless it is asked for (`trusting_remote_code`), all weights are the
file's, and what is wrong with a folder is said in one line that names it.
"""

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from huggingface_hub import constants as hub
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..model.configuration_r2d2 import R2D2Config
from ..model.processing_r2d2 import R2D2Processor
from .dual_encoders import (
    DUAL_ENCODERS,
    Origins,
    r2d2_config,
    r2d2_processor,
    refuse_untaken,
    require_dual_encoder,
    take_weights,
)
from .finite import require_finite_weights
from .folders import OWN_TYPES, is_index, read_json_object, require_model_folder
from .loading_errors import LoadingError, first_line

#: What a Hub name looks like; everything else that is not there is a mistyped folder.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Model = TypeVar("Model", bound=PreTrainedModel)
Config = TypeVar("Config", bound=PreTrainedConfig)

_trusted: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting_remote_code(trusted: bool = True) -> Iterator[None]:
    """Within it, everything that this package loads may run code out of its folder or repository.

    The default, everywhere and always, is that no such code runs and nobody is asked.
    """
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


@overload
def load_whole(kind: type[Model], place: str | PathLike, fresh: tuple[str, ...] = (), **options: Any) -> Model: ...
@overload
def load_whole(kind: Any, place: str | PathLike, fresh: tuple[str, ...] = (), **options: Any) -> PreTrainedModel: ...


def load_whole(kind: Any, place: str | PathLike, fresh: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """`kind.from_pretrained(place)` with all weights of the file in the model, and all of the model from the file.

    Transformers makes missing weights at random, and leaves out what the configuration does not ask for.

    Args:
        kind: a model class, or an Auto class.
        place: folder or Hub name.
        fresh: beginnings of the names of weights that may begin at random.
        options: of `from_pretrained`.

    Raises:
        ValueError: weights that are missing, left over or of another shape (names the first of them); a folder of
            another kind, a damaged file, sizes that no model has, code that would have to run.
        OSError: no such folder here, and no such model on the Hub.
    """
    model, info = load_with_report(kind, place, **options)
    check_loading(model, info, place, fresh)
    return model


def load_with_report(kind: Any, place: str | PathLike, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`kind.from_pretrained(place)` and its loading info, for callers who judge it themselves. A dual encoder of
    transformers loads as an R2D2 without a ranker (`load_dual_encoder`).

    Raises:
        ValueError, OSError: as `load_whole`, weights that do not fit apart.
        NotFiniteError: NaN or infinite weights.
    """
    if _is_r2d2(kind) and _takes_over(place):
        model, info, _ = load_dual_encoder(kind, place, **options)
        return model, info
    with one_line_errors(place, kind):
        require_model_folder(place, kind)
        with _without_report():
            safe = {**_trust(), "weights_only": True, "ignore_mismatched_sizes": True}
            model, info = kind.from_pretrained(place, output_loading_info=True, **{**safe, **options})
    require_finite_weights(model, place)
    model.config.return_dict = True  # a folder may say otherwise, and this package reads outputs by name
    return model, info


def is_dual_encoder(place: str | PathLike) -> bool:
    """Whether a folder or Hub name holds a dual encoder of transformers that loads as an R2D2 without a ranker; False
    too where nothing can be read, which whoever loads it says."""
    return _values_or_none(place).get("model_type") in DUAL_ENCODERS


def _takes_over(place: str | PathLike) -> bool:
    """`is_dual_encoder`, for whom an R2D2 is asked for.

    Raises:
        LoadingError: what cannot be taken over, see `refuse_untaken`.
    """
    values = _values_or_none(place)
    if values.get("model_type") in DUAL_ENCODERS:
        return True
    refuse_untaken(values, place)
    return False


def _values_or_none(place: str | PathLike) -> dict[str, Any]:
    """What config.json says; nothing of a file, or where it cannot be read."""
    try:
        return {} if Path(place).is_file() else config_values(place)
    except (OSError, ValueError):
        return {}


def _is_r2d2(kind: Any) -> bool:
    """Whether a class is one of R2D2's models, or its configuration."""
    config = getattr(kind, "config_class", None) or kind
    return getattr(config, "model_type", None) == R2D2Config.model_type


def load_dual_encoder(
    kind: Any, place: str | PathLike, config: R2D2Config | None = None, **options: Any
) -> tuple[Any, dict[str, Any], Origins]:
    """A dual encoder of transformers (Chinese-CLIP, CLIP, SigLIP, AltCLIP) as an R2D2 model without a ranker.

    Args:
        kind: `R2D2Model`, or a class that has its towers.
        place: folder or Hub name of the source.
        config: of `load_config(R2D2Config, place)`, where something of it was changed.
        options: of `from_pretrained`.

    Returns:
        the model, the loading info, and what became of the source's tensors.

    Raises:
        ValueError: no such dual encoder, or one that lacks weights.
        OSError: no such place.
    """
    source_class = require_dual_encoder(config_values(place), place).model_class
    where = {name: options.pop(name) for name in _WHERE if name in options}
    source, found = load_with_report(source_class, place, **where, dtype=torch.float32)
    check_loading(source, found, place)
    config = r2d2_config(source.config, place) if config is None else config
    tensors, origins = take_weights(source, config)
    reason = f"a {source_class.__name__} does not read it"
    origins.unused = dict.fromkeys(sorted(found["unexpected_keys"]), reason)
    with one_line_errors(place, kind), _without_report():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, **{"dtype": torch.float32, **options}
        )
    model.config.name_or_path = str(place)
    model.config.return_dict = True
    return model.eval(), info, origins


#: Options of `from_pretrained` that say where the files are.
_WHERE = ("subfolder", "token", "cache_dir", "revision", "local_files_only")


def check_loading(
    model: PreTrainedModel, info: Mapping[str, Any], place: str | PathLike, fresh: tuple[str, ...] = ()
) -> None:
    """Refuse what `from_pretrained(…, output_loading_info=True)` reports as not fitting.

    Raises:
        ValueError: missing weights other than `fresh`, weights of another shape, weights left over: of our classes any,
            of others the layers that the configuration leaves out.
    """
    name = type(model).__name__
    if mismatched := sorted(info["mismatched_keys"]):
        weight, held, wanted = mismatched[0]
        raise ValueError(
            f"{place}: {len(mismatched)} weights have another shape than config.json says, such as {weight}: "
            f"{tuple(held)} in the file, {tuple(wanted)} in a {name}"
        )
    if missing := sorted(each for each in info["missing_keys"] if not each.startswith(fresh)):
        raise ValueError(
            f"{place} lacks {len(missing)} weights of a {name}, such as {missing[0]}: it holds a model of another "
            "kind, and they would be random"
        )
    left = sorted(info["unexpected_keys"])
    if model.config.model_type not in OWN_TYPES:
        left = layers_left_out(left, model.state_dict())
    if left:
        raise ValueError(
            f"{place} holds {len(left)} weights that a {name} of its config.json does not have, such as {left[0]}: "
            "the configuration belongs to another model, and they would be left out"
        )


def layers_left_out(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `names` that differ from a known one in a number alone: further layers of the same stack."""
    shapes = {re.sub(r"\b\d+\b", "#", name) for name in known}
    return [name for name in names if re.search(r"\b\d+\b", name) and re.sub(r"\b\d+\b", "#", name) in shapes]


@overload
def load_config(kind: type[Config], place: str | PathLike, **options: Any) -> Config: ...
@overload
def load_config(kind: Any, place: str | PathLike, **options: Any) -> PreTrainedConfig: ...


def load_config(kind: Any, place: str | PathLike, **options: Any) -> PreTrainedConfig:
    """`kind.from_pretrained(place)` of a configuration class or `AutoConfig`; `place` may be the file itself.

    Raises:
        ValueError: no JSON object, another model type than the class's, impossible sizes.
        OSError: no such place.
    """
    if _is_r2d2(kind) and _takes_over(place):
        return r2d2_config(load_config(AutoConfig, place, **options), place)
    with one_line_errors(place, kind):
        require_model_folder(place, kind, weights=False)
        trust = _trust() if kind is AutoConfig else {}
        return kind.from_pretrained(place, **{**trust, **options})


def config_values(place: str | PathLike) -> dict[str, Any]:
    """What the config.json of a folder, file or Hub name says, as it stands there.

    Raises:
        ValueError: no JSON object, impossible sizes.
        OSError: no such place.
    """
    with one_line_errors(place, PreTrainedConfig):
        require_model_folder(place, PreTrainedConfig, weights=False)
        return PreTrainedConfig.get_config_dict(place)[0]


def model_type(place: str | PathLike) -> str | None:
    """What `model_type` the config.json of a folder, file or Hub name says; None where it says nothing.

    Raises:
        ValueError: no JSON object, impossible sizes.
        OSError: no such place.
    """
    return config_values(place).get("model_type")


def load_processor(kind: Any, place: str | PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(place)` of a processor class or `AutoProcessor`: texts and pictures. That of a dual encoder
    of transformers becomes an `R2D2Processor` where one is asked for.

    Raises:
        ValueError: a damaged file; a folder that holds a tokenizer or an image processor alone; code that would have to
            run.
        OSError: no such place, or nothing of it there.
    """
    if kind is R2D2Processor and _takes_over(place):
        own = load_processor(AutoProcessor, place, **options)
        where = {name: value for name, value in options.items() if name in _WHERE}
        return r2d2_processor(own, load_config(R2D2Config, place, **where), place)
    with one_line_errors(place, kind):
        _require_readable_json(Path(place))
        processor = kind.from_pretrained(place, **{**_trust(), **options})
    lacking = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
    if lacking:
        raise ValueError(f"{place} holds no processor for texts and pictures: it has no {' and no '.join(lacking)}")
    _require_vocabulary(processor.tokenizer, place)
    return processor


def load_tokenizer(place: str | PathLike, **options: Any) -> Any:
    """`AutoTokenizer.from_pretrained(place)`.

    Raises:
        ValueError: no tokenizer, or one whose code would have to run.
        OSError: no such place.
    """
    return load_part(AutoTokenizer, place, **options)


def load_component(kind: Any, place: str | PathLike, subfolder: str) -> Any:
    """A network of diffusers out of a pipeline's folder or repository, with all of its weights.

    Raises:
        ValueError: weights that are missing or left over, a damaged file.
        OSError: no such place.
    """
    with one_line_errors(place, kind):
        model, info = kind.from_pretrained(place, subfolder=subfolder, output_loading_info=True)
    require_finite_weights(model, f"{place}/{subfolder}")
    wrong = [*info["missing_keys"], *layers_left_out(info["unexpected_keys"], model.state_dict())]
    if wrong:
        raise LoadingError(
            f"{place}: {len(wrong)} weights of its {subfolder} do not fit its config.json, such as {wrong[0]}"
        )
    return model


def load_part(kind: Any, place: str | PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(place)` of anything else: an Auto class, or a pipeline of diffusers.

    Raises:
        ValueError: it cannot be loaded; says why in one line.
        OSError: no such place.
    """
    with one_line_errors(place, kind):
        _require_readable_json(Path(place))
        return kind.from_pretrained(place, **{**_trust(), **options})


def _trust() -> dict[str, bool]:
    """Always given: where it is not, transformers asks on the terminal whether to run a stranger's code."""
    return {"trust_remote_code": _trusted.get()}


@contextmanager
def _without_report() -> Iterator[None]:
    """Transformers' table of missing and left-over weights; what is wrong is raised instead."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


@cache
def _note_question(name: str) -> None:
    """Once for each name, before the Hub lets one wait; the command line shows it."""
    logging.getLogger(__name__).info("no such folder here: %s; asking the Hub for a model of this name", name)


@contextmanager
def one_line_errors(place: str | PathLike, kind: Any) -> Iterator[None]:
    """Within it, whatever a library raises at a folder becomes one line about that folder.

    Raises:
        FileNotFoundError: neither a folder or file here nor what looks like a Hub name; or the Hub does not have it.
        ImportError: a package is missing; of that of SigLIP's tokenizer says which.
        LoadingError: all else but missing permission and memory.
    """
    if not Path(place).exists() and not _HUB_NAME.fullmatch(str(place)):
        raise FileNotFoundError(f"no such folder: {place}")
    if is_index(place):
        raise LoadingError(
            f"{place} is not a model folder: it has no config.json; it is an index: name the model that it was made "
            "with"
        )
    if not Path(place).exists() and not hub.HF_HUB_OFFLINE:
        _note_question(str(place))
    try:
        yield
    except LoadingError:
        raise
    except OSError as error:
        if Path(place).exists():
            if isinstance(error, PermissionError):
                raise
            _refuse_forbidden(place, error)
            raise LoadingError(f"{place}: {first_line(error)}") from error
        offline = " (offline: HF_HUB_OFFLINE is set)" if hub.HF_HUB_OFFLINE else ""
        raise FileNotFoundError(
            f"no such folder: {place}; and no such model could be had from the Hub{offline}"
            + ("" if offline else f": {first_line(error)}")
        ) from error
    except ImportError as error:
        if any(name in str(error).lower() for name in ("sentencepiece", "protobuf")):
            needed = f"{place}: its tokenizer needs sentencepiece: pip install 'modeling-r2d2[siglip]'"
            raise ImportError(needed) from error
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged file or configuration makes the libraries raise anything
        if "trust_remote_code" in str(error):
            raise LoadingError(
                f"{place} brings code of its own, which is not run: read it, and if you trust its author pass "
                "--trust-remote-code (in Python: `with modeling_r2d2.inference.loading.trusting_remote_code():`)"
            ) from error
        name = getattr(kind, "__name__", str(kind))
        raise LoadingError(f"{place} does not load as {name}: {first_line(error)}") from error


def _refuse_forbidden(place: str | PathLike, error: Exception) -> None:
    """Say that a file may not be read, where safetensors says that it does not exist.

    Raises:
        PermissionError: names the first such file.
    """
    root = Path(place)
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file() and not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, "permission denied, this user may not read it", str(path)) from error


#: What processors and tokenizers are made of: a library's message about a damaged one does not say which it is.
_JSON_OF_PROCESSORS = (
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
)


def _require_readable_json(folder: Path) -> None:
    for name in _JSON_OF_PROCESSORS:
        if (folder / name).is_file():
            read_json_object(folder / name)


def _require_vocabulary(tokenizer: Any, place: str | PathLike) -> None:
    """Transformers makes a tokenizer without its files too: every text is [UNK] then, or none can be padded.

    Raises:
        LoadingError: it knows no token but special ones, or none to pad with.
    """
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise LoadingError(f"{place}: its tokenizer knows no words: tokenizer.json (or vocab.txt) is missing or empty")
    if tokenizer.pad_token is None:
        raise LoadingError(f"{place}: its tokenizer has no token to pad with: tokenizer_config.json is missing or torn")


__all__ = [
    "check_loading",
    "config_values",
    "is_dual_encoder",
    "layers_left_out",
    "load_component",
    "load_config",
    "load_dual_encoder",
    "load_part",
    "load_processor",
    "load_tokenizer",
    "load_whole",
    "load_with_report",
    "model_type",
    "one_line_errors",
    "trusting_remote_code",
]

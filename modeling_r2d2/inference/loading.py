"""The one place that loads models, processors, tokenizers, configurations and pipelines.

Nothing that is loaded brings code of its own unless it is asked for (`trusting_remote_code`), all weights are the
file's, and what is wrong with a folder is said in one line that names it.
"""

import argparse
import errno
import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import torch
from huggingface_hub import constants as hub
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from .finite import require_finite_weights

#: What a Hub name looks like; everything else that is not there is a mistyped folder.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OWN_TYPES = ("r2d2", "wukong")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl")

#: The largest value a configuration may name: far beyond every model there is, and within any memory.
_LARGEST = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1_024,
    "hidden_size": 65_536,
    "intermediate_size": 1_048_576,
    "projection_dim": 65_536,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 1_000_000,
    "image_size": 65_536,
    "patch_size": 65_536,
    "num_channels": 1_024,
    "embed_dim": 65_536,
    "max_text_length": 1_000_000,
    "token_reduction": 65_536,
}
_LONGEST_REASON = 400
_LARGEST_MODEL = 20 * 10**9
#: A configuration of so many times the weights in the files is of another model: refused before memory is taken.
_MOST_TIMES_THE_FILES = 20

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
    """`kind.from_pretrained(place)` and its loading info, for callers who judge it themselves.

    Raises:
        ValueError, OSError: as `load_whole`, weights that do not fit apart. NotFiniteError: NaN or infinite weights.
    """
    with one_line_errors(place, kind):
        _require_model_folder(place, kind)
        with _without_report():
            safe = {**_trust(), "weights_only": True, "ignore_mismatched_sizes": True}
            model, info = kind.from_pretrained(place, output_loading_info=True, **{**safe, **options})
    require_finite_weights(model, place)
    model.config.return_dict = True  # a folder may say otherwise, and this package reads outputs by name
    return model, info


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
    if model.config.model_type not in _OWN_TYPES:
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


def load_config(kind: Any, place: str | PathLike, **options: Any) -> PreTrainedConfig:
    """`kind.from_pretrained(place)` of a configuration class or `AutoConfig`; `place` may be the file itself.

    Raises:
        ValueError: no JSON object, another model type than the class's, impossible sizes. OSError: no such place.
    """
    with one_line_errors(place, kind):
        _require_model_folder(place, kind, weights=False)
        trust = _trust() if kind is AutoConfig else {}
        return kind.from_pretrained(place, **{**trust, **options})


def config_values(place: str | PathLike) -> dict[str, Any]:
    """What the config.json of a folder, file or Hub name says, as it stands there.

    Raises:
        ValueError: no JSON object, impossible sizes. OSError: no such place.
    """
    with one_line_errors(place, PreTrainedConfig):
        _require_model_folder(place, PreTrainedConfig, weights=False)
        return PreTrainedConfig.get_config_dict(place)[0]


def model_type(place: str | PathLike) -> str | None:
    """What `model_type` the config.json of a folder, file or Hub name says; None where it says nothing.

    Raises:
        ValueError: no JSON object, impossible sizes. OSError: no such place.
    """
    return config_values(place).get("model_type")


def load_processor(kind: Any, place: str | PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(place)` of a processor class or `AutoProcessor`: texts and pictures.

    Raises:
        ValueError: a damaged file; a folder that holds a tokenizer or an image processor alone; code that would have
            to run. OSError: no such place, or nothing of it there.
    """
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
        ValueError: no tokenizer, or one whose code would have to run. OSError: no such place.
    """
    return load_part(AutoTokenizer, place, **options)


def load_component(kind: Any, place: str | PathLike, subfolder: str) -> Any:
    """A network of diffusers out of a pipeline's folder or repository, with all of its weights.

    Raises:
        ValueError: weights that are missing or left over, a damaged file. OSError: no such place.
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
        ValueError: it cannot be loaded; says why in one line. OSError: no such place.
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
        LoadingError: all else but missing permission, packages and memory.
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
            raise LoadingError(f"{place}: {_first_line(error)}") from error
        offline = " (offline: HF_HUB_OFFLINE is set)" if hub.HF_HUB_OFFLINE else ""
        raise FileNotFoundError(
            f"no such folder: {place}; and no such model could be had from the Hub{offline}"
            + ("" if offline else f": {_first_line(error)}")
        ) from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file or configuration makes the libraries raise anything
        if "trust_remote_code" in str(error):
            raise LoadingError(
                f"{place} brings code of its own, which is not run: read it, and if you trust its author pass "
                "--trust-remote-code (in Python: `with modeling_r2d2.inference.loading.trusting_remote_code():`)"
            ) from error
        name = getattr(kind, "__name__", str(kind))
        raise LoadingError(f"{place} does not load as {name}: {_first_line(error)}") from error


def _refuse_forbidden(place: str | PathLike, error: Exception) -> None:
    """Say that a file may not be read, where safetensors says that it does not exist.

    Raises:
        PermissionError: names the first such file.
    """
    root = Path(place)
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file() and not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, "permission denied, this user may not read it", str(path)) from error


def refuse_unsafe_pickles(folder: str | PathLike) -> None:
    """Look into every pickle of a checkpoint before a library does: tensors and plain values, or it is refused.

    Optimizers, schedules and random states are pickles by their libraries' choice; what `training_args.bin` holds is
    read by nothing.

    Raises:
        ValueError: a file that could run code, or is no pickle at all; names it.
    """
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in _PICKLE_SUFFIXES and path.name != "training_args.bin" and path.is_file():
            load_tensors(path)


def load_tensors(path: str | PathLike) -> Any:
    """What a file of torch holds, on the CPU, mapped from disk where possible: tensors, plain values, numpy's arrays
    and `argparse.Namespace`, which old training scripts save beside the weights.

    Raises:
        LoadingError: it holds something else, which could run code when it is loaded; or it is damaged.
        OSError: no such file.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a file of other bytes makes the unpickler raise anything, IndexError for one
        if names := _code_of(path, error):
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise LoadingError(
                f"{path} holds objects beyond tensors and plain values ({listed}), and loading those could run code of "
                "the file: it is not loaded; get a file of its tensors alone"
            ) from error
        raise LoadingError(f"{path} cannot be read as a torch checkpoint: {_first_line(error)}") from error


def _harmless() -> list[Any]:
    """What may be made of a pickle beside torch's own list: random states and settings hold it, and it runs nothing."""
    scalar = numpy.float64(0).__reduce__()[0]
    reconstruct = numpy.zeros(0).__reduce__()[0]
    kinds = {type(numpy.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "u4", "u8", "?")}
    return [numpy.ndarray, numpy.dtype, *kinds, scalar, reconstruct, argparse.Namespace]


def _code_of(path: str | PathLike, error: Exception) -> list[str]:
    """The classes and functions of a pickle that are not on the list."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip archive: the message itself names the first one
        return re.findall(r"GLOBAL (\S+)", str(error))


@contextmanager
def configuration_errors(what: str) -> Iterator[None]:
    """Within it, sizes that do not go together are one line that begins with `what`; transformers raises a plain
    `Exception` of many lines.

    Raises:
        LoadingError: says which.
    """
    try:
        yield
    except StrictDataclassError as error:
        raise LoadingError(f"{what}: {_first_line(error)}") from error


class LoadingError(ValueError):
    """A folder or file that cannot be loaded; one line says which and why."""


def _first_line(error: BaseException) -> str:
    """The message without what follows its first sentence's line, and without advice to run a pickle's code."""
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    text = str(error).strip()
    if "weights_only" in text or "Weights only load failed" in text:  # torch goes on to advise how to load it still
        reason = re.search(r"WeightsUnpickler error: ([^.\n]+)", text)
        if reason is None or "global" in reason[1].lower():
            return "it holds a pickle with more than tensors and plain values, which could run code and is not loaded"
        return f"it holds no tensors ({reason[1]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    found = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if len(found) > _LONGEST_REASON:
        found = f"{found[:_LONGEST_REASON]}…"
    return f"{type(error).__name__}: {found}" if isinstance(error, (KeyError, TypeError, AttributeError)) else found


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


def _require_model_folder(place: str | PathLike, kind: Any, weights: bool = True) -> None:
    """What can be told of a local folder before anything is loaded. `place` may be a config.json where `weights` is
    False."""
    path = Path(place)
    if not path.exists():
        return
    if (path / "adapter_config.json").is_file():  # transformers would go and load the model that this file names
        raise LoadingError(
            f"{place} holds an adapter (PEFT): load the model that it was made on, then "
            "`modeling_r2d2.finetuning.load_adapter(model, folder)`"
        )
    if path.is_file():
        if weights or path.suffix != ".json":
            raise LoadingError(f"{place} is a file; a model is a folder with a config.json")
        config_file = path
    else:
        config_file = path / "config.json"
        if not config_file.is_file():
            raise LoadingError(f"{place} is not a model folder: it has no config.json{_other_kind(path)}")
    if weights and is_onnx_export(path):
        raise LoadingError(f"{place} holds ONNX graphs (R2D2OnnxModel), and the model itself is needed here")
    config = read_json_object(config_file)
    expected = getattr(getattr(kind, "config_class", None) or kind, "model_type", None)
    held = config.get("model_type")
    if expected in _OWN_TYPES and held not in (None, expected):
        raise LoadingError(f"{place} holds a model of type {held!r}, and {kind.__name__} needs {expected!r}")
    _check_sizes(config, config_file)
    parameters = _least_parameters(config)
    if parameters > _LARGEST_MODEL:
        raise LoadingError(f"{config_file} describes a model of more than {parameters / 1e9:,.0f} billion parameters")
    if weights and (held := _weight_sizes(path)):
        parts = [config, *_parts(config)]
        most = max(_least_parameters(part) for part in parts)
        counts = [part.get("num_hidden_layers") for part in parts]
        layers = max((count for count in counts if isinstance(count, int)), default=0)
        if most > _MOST_TIMES_THE_FILES * sum(held) + 10**8 or layers > len(held):
            raise LoadingError(
                f"{config_file} describes a model of {layers:,} layers and at least {most:,} parameters, and the "
                f"weight files hold {len(held):,} tensors of {sum(held):,}"
            )


def _other_kind(folder: Path) -> str:
    known = {
        "model_index.json": "it holds a pipeline of diffusers",
        "manifest.json": _manifest_of(folder),
        "trainer_state.json": "it holds the state of a run",
    }
    return next((f"; {what}" for name, what in known.items() if (folder / name).is_file()), "")


def _manifest_of(folder: Path) -> str:
    """What the manifest.json of a folder that is neither model nor index says that it is."""
    if is_onnx_export(folder):
        return "it holds ONNX graphs, which `r2d2 index`, `search`, `match` and `app` take"
    return "its manifest.json is of something else"


def is_index(folder: str | PathLike) -> bool:
    """Whether a folder is what `r2d2 index` makes, by its manifest.json alone."""
    return _manifest_has(folder, "vectors") and not (Path(folder) / "config.json").exists()


def is_onnx_export(folder: str | PathLike) -> bool:
    """Whether a folder is what `r2d2 export` makes: a manifest.json of graphs, or the graphs and a torn one."""
    torn = all((Path(folder) / name).is_file() for name in ("manifest.json", "text_tower.onnx"))
    return torn or _manifest_has(folder, "graphs")


def _manifest_has(folder: str | PathLike, key: str) -> bool:
    """Whether a folder's manifest.json is one of ours that holds a key; browsers and web pages have files of this name
    too."""
    try:
        held = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
        return isinstance(held, dict) and {"format", key} <= held.keys()
    except (OSError, ValueError, RecursionError):
        return False


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: not UTF-8, no JSON, or nested too deep; names file and place. OSError: not readable.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise LoadingError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise LoadingError(f"{path}:{error.lineno} is not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise LoadingError(f"{path} is not JSON that can be read: {_first_line(error)}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: as `read_json`; or it is no object. OSError: not readable.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise LoadingError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [value for value in config.values() if isinstance(value, Mapping)]


def _check_sizes(config: Mapping[str, Any], file: Path, within: str = "") -> None:
    """Sizes are whole numbers from 1 to what some machine could hold, before anything is made of them."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("config"):
            _check_sizes(value, file, f"{within}{name}.")
        if name not in _LARGEST or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _LARGEST[name]:
                raise LoadingError(
                    f"{file}: {within}{name} is {number!r}; it must be a whole number from 1 to {_LARGEST[name]:,}"
                )


def _least_parameters(config: Mapping[str, Any]) -> int:
    """A lower bound: attention and embeddings of a configuration and of those within it."""

    def size(name: str) -> int:
        value = config.get(name)
        return value if isinstance(value, int) else 0

    width = size("hidden_size")
    own = width * (size("vocab_size") + size("num_hidden_layers") * (4 * width + 2 * size("intermediate_size")))
    return own + sum(_least_parameters(part) for part in _parts(config))


def _weight_sizes(folder: Path) -> list[int]:
    """How many numbers each tensor of a folder's safetensors files holds, by their headers; [] where there are none.

    Raises:
        ValueError: a file that is damaged, or that the index names and is not there.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        held = read_json_object(index).get("weight_map")
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held.values()):
            raise LoadingError(f"{index} lists no weights (weight_map)")
        files = sorted({folder / name for name in held.values()})
        if lacking := [file.name for file in files if not file.is_file()]:
            raise LoadingError(f"{folder} lacks {len(lacking)} of {len(files)} weight files, such as {lacking[0]}")
    else:
        return []
    sizes = []
    for file in files:
        try:
            with safe_open(file, framework="np") as held:
                names = held.keys()
                sizes += [math.prod(held.get_slice(name).get_shape()) for name in names]
        except SafetensorError as error:
            raise LoadingError(f"{file} is damaged, or was cut short: {_first_line(error)}") from error
    return sizes


__all__ = [
    "LoadingError",
    "check_loading",
    "configuration_errors",
    "config_values",
    "layers_left_out",
    "load_component",
    "load_config",
    "load_part",
    "load_processor",
    "load_tensors",
    "load_tokenizer",
    "load_whole",
    "load_with_report",
    "model_type",
    "one_line_errors",
    "read_json",
    "read_json_object",
    "refuse_unsafe_pickles",
    "trusting_remote_code",
]

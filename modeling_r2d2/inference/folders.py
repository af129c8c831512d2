"""What a local folder holds, before anything is loaded."""

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .loading_errors import LoadingError, first_line

#: Model types of this package.
OWN_TYPES = ("r2d2", "wukong", "brivl")
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
_LARGEST_MODEL = 20 * 10**9
#: A configuration of so many times the weights in the files is of another model: refused before memory is taken.
_MOST_TIMES_THE_FILES = 20


def require_model_folder(place: str | PathLike, kind: Any, weights: bool = True) -> None:
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
    if expected in OWN_TYPES and held not in (None, expected):
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
        ValueError: not UTF-8, no JSON, or nested too deep; names file and place.
        OSError: not readable.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise LoadingError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise LoadingError(f"{path}:{error.lineno} is not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise LoadingError(f"{path} is not JSON that can be read: {first_line(error)}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: as `read_json`; or it is no object.
        OSError: not readable.
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
            raise LoadingError(f"{file} is damaged, or was cut short: {first_line(error)}") from error
    return sizes


__all__ = ["OWN_TYPES", "is_index", "is_onnx_export", "read_json", "read_json_object", "require_model_folder"]

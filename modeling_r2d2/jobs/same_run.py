"""A resumed run is the same run, or is refused: what a run depends on is noted in each of its checkpoints.

How often a run logs, saves or evaluates, how many processes load its data and where it writes may change; everything
that its weights depend on may not. Text-to-image training notes and compares its settings by the same functions.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..inference.finite import to_json
from ..inference.pickles import refuse_unsafe_pickles
from ..model.images_r2d2 import opening_of
from ..processing.datasets import PairDataset
from ..processing.datasets.pair_sets import as_pairs, innermost
from ..processing.files.writing import write_text
from .checkpoints import complete_checkpoints, damage, steps_of

logger = logging.getLogger(__name__)

RUN_FILE = "run_settings.json"
#: Of a configuration: what a newer library or another place changes, and the weights do not depend on.
_VOLATILE = {
    *("transformers_version", "_diffusers_version", "_name_or_path", "name_or_path", "architectures", "auto_map"),
    # Trainer takes these from the tokenizer, which is compared itself; the types of the weights are compared too
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "attn_implementation"),
}
#: Rows of a table that are hashed at once, and items of a set without one that are.
_ROWS, _SAMPLED = 2**16, 32
_SHOWN = 3


# -- what a run depends on ----------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A setting as JSON holds it: dataclasses and plain objects by their class and fields, tensors by a digest."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return digest(torch.as_tensor(value).contiguous().cpu().numpy().tobytes())
    if isinstance(value, PathLike):
        return Path(value).name
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items() if name not in _VOLATILE}
    if isinstance(value, list | tuple | set | frozenset):
        entries = [plain(entry) for entry in value]
        return sorted(entries, key=str) if isinstance(value, set | frozenset) else entries
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a function or a class
        return f"{value.__module__}.{name}"
    if is_dataclass(value):
        held = {each.name: getattr(value, each.name) for each in fields(value)}
    else:
        held = {key: entry for key, entry in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    return {"": type(value).__name__, **{key: plain(entry) for key, entry in held.items()}}


def digest(*parts: bytes) -> str:
    """A short digest of bytes."""
    held = hashlib.blake2b(digest_size=8)
    for part in parts:
        held.update(part)
    return held.hexdigest()


def describe_data(pairs: Any) -> dict[str, Any]:
    """How many pairs, and a digest of their texts (and labels), in their order, wherever the pictures lie; and what
    colour transparent pictures are put on.

    Args:
        pairs: a `PairDataset`, a stream (of which only the number of shards is known), or anything indexable: of one
            without `texts` items at equal distances are read.
    """
    if not hasattr(pairs, "__len__"):
        background = plain(getattr(pairs, "background", None))
        return {"shards": getattr(pairs, "num_shards", None), "background": background}
    pairs = innermost(as_pairs(pairs))
    held = hashlib.blake2b(digest_size=8)
    if isinstance(pairs, PairDataset):
        import pyarrow as pa

        names = [name for name in ("texts", "label") if name in pairs.table.column_names]
        for batch in pairs.table.select(names).to_batches(max_chunksize=_ROWS):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            held.update(sink.getvalue())
    else:
        count = len(pairs) if pairs.lists_texts else min(len(pairs), _SAMPLED)
        for place in np.linspace(0, len(pairs) - 1, count).round().astype(int).tolist():
            item = {"text": pairs.texts(place)} if pairs.lists_texts else _item(pairs, place)
            held.update(repr((item.get("text"), item.get("label"))).encode("utf-8", "surrogatepass"))
    described = {"pairs": len(pairs), "texts": held.hexdigest(), "background": plain(pairs.background)}
    return described if pairs.together == 1 else {**described, "together": pairs.together}


def _item(pairs: Any, place: int) -> Mapping[str, Any]:
    try:
        item = pairs[place]
    except (OSError, ValueError):  # a picture that cannot be read: training will say so
        return {}
    return item if isinstance(item, Mapping) else {}


def describe_processor(processor: Any) -> dict[str, Any]:
    """A digest of the vocabulary, and how pictures become pixels."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found: dict[str, Any] = {}
    if hasattr(tokenizer, "get_vocab"):
        entries = sorted(tokenizer.get_vocab().items())
        found["tokenizer"] = {
            "tokens": len(entries),
            "vocabulary": digest(repr(entries).encode("utf-8", "surrogatepass")),
            "max_length": tokenizer.model_max_length,
        }
    if (images := getattr(processor, "image_processor", None)) is not None:
        names = (
            *("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor"),
            *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
        )
        found["pictures"] = {name: plain(getattr(images, name, None)) for name in names}
        found["pictures"] |= {name: value for name, value in opening_of(images).items() if value is not None}
    return found


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Class and configuration, and a digest of which parameters train."""
    of_adapters = getattr(model, "get_base_model", None)
    base = model if of_adapters is None else of_adapters()
    config = getattr(base, "config", None)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {
        "class": type(base).__name__,
        "config": {} if config is None else plain(config.to_dict()),
        "dtypes": sorted({str(parameter.dtype) for parameter in model.parameters()}),
        "trained": {"parameters": len(trained), "names": digest("\n".join(sorted(trained)).encode())},
    }


# -- noting and comparing ------------------------------------------------------------------------------


def note_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what a run depends on into one of its checkpoints."""
    write_text(folder / RUN_FILE, to_json(identity, folder / RUN_FILE, indent=1) + "\n")


def require_same_run(
    folder: Path, identity: Mapping[str, Any], may_begin: bool = False, lengthens: bool = True
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        lengthens: more steps than it had are allowed (`tell_lengthened` says so).
        may_begin: distillation may begin on a checkpoint of a run without it (its callback decides).

    Raises:
        ValueError: names the settings that differ, with both values; or the note is missing or damaged.
    """
    path = folder / RUN_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} does not say which run it belongs to (no {RUN_FILE}): it was written by another program, or by "
            "an earlier version. Start a new run from its weights (`--model`), in another folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): resume from another checkpoint") from error
    if isinstance(saved, dict):
        if may_begin and saved.get("distillation") is None:
            saved["distillation"] = identity.get("distillation")
        before, steps = saved.get("max_steps"), identity.get("max_steps")
        if lengthens and _is_lengthened(before, steps):
            saved["max_steps"] = steps
    refuse_differences(saved, identity, folder)


def tell_lengthened(folder: Path, identity: Mapping[str, Any]) -> None:
    """Say that a run of which `folder` is a whole checkpoint goes on for more steps than it had."""
    saved = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    before, steps = saved.get("max_steps"), identity.get("max_steps")
    if _is_lengthened(before, steps):
        logger.warning(
            "the run in %s is lengthened from %d to %d steps: from here on it is another run than one "
            "of %d steps, as the learning rate follows the longer schedule",
            folder.parent,
            before,
            steps,
            steps,
        )


def _is_lengthened(before: Any, steps: Any) -> bool:
    return isinstance(before, int) and isinstance(steps, int) and 0 < before < steps


def refuse_differences(saved: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Raise where the settings of a checkpoint and of this run differ.

    Raises:
        ValueError: names up to three of them, with both values.
    """
    own = json.loads(to_json(own, "the settings of this run"))
    different = list(_differences(saved, own))
    if not different:
        return
    shown = "; ".join(
        f"{name} {_shown(there)}, this run has {_shown(here)}" for name, there, here in different[:_SHOWN]
    )
    more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    raise ValueError(
        f"the checkpoint {folder} was made with {shown}{more}: resume with the same settings, or start another run in "
        "another folder"
    )


def _differences(saved: Any, own: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        for key in dict.fromkeys([*saved, *own]):
            inner = (f"{name}.{key}" if name else key) if key else name
            yield from _differences(saved.get(key), own.get(key), inner)
    elif isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own) == 1:
        yield from _differences(saved[0], own[0], name)
    elif saved != own:
        yield name, saved, own


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


# -- which checkpoint -----------------------------------------------------------------------------------


def checkpoint_to_resume(output: Path) -> Path:
    """The whole checkpoint of the most steps; says so where a newer one is damaged.

    Raises:
        ValueError: there is none.
    """
    whole = complete_checkpoints(output) if output.is_dir() else []
    numbered = [p for p in output.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    newest = max(numbered, key=steps_of, default=None)
    if newest is None:
        raise ValueError(
            f"nothing to resume: {output} holds no checkpoint (it is another folder, or the run ended before the first "
            "was saved: then begin without `--resume`)"
        )
    if not whole:
        refuse_unsafe_pickles(newest)
        raise ValueError(
            f"nothing to resume: {newest} is damaged or was cut off while it was written ({damage(newest)}), and "
            f"{output} holds no other whole checkpoint"
        )
    if whole[-1] != newest:
        logger.warning(
            "%s is damaged or was cut off (%s): the run goes on from %s, the last whole checkpoint",
            *(newest, damage(newest), whole[-1]),
        )
    return whole[-1]


def finished_state(output: Path) -> TrainerState | None:
    """The state that a run ended in, which is written last, after the model; None of one that has not ended."""
    path = output / TRAINER_STATE_NAME
    if not path.is_file() or not any(output.glob("*.safetensors")):
        return None
    try:
        return TrainerState.load_from_json(str(path))
    except (ValueError, TypeError):
        return None


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which the system releases when the process ends, however it ends. Of several
    processes of one run the first holds it.

    Raises:
        OSError: another run writes there.
    """
    from filelock import FileLock, Timeout

    if int(os.environ.get("RANK", 0)):
        yield
        return
    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another run is writing to {output}: wait for it to end, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()
        if made and [path.name for path in output.iterdir()] == [".lock"]:  # refused before anything was written
            (output / ".lock").unlink()
            output.rmdir()


__all__ = [
    "RUN_FILE",
    "checkpoint_to_resume",
    "describe_data",
    "describe_model",
    "describe_processor",
    "digest",
    "finished_state",
    "note_run",
    "only_run",
    "plain",
    "refuse_differences",
    "require_same_run",
]

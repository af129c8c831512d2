"""The distillation state in a Trainer's checkpoint folder, and the mark that a folder is complete."""

import json
import os
import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

STATE_FILE = "distillation.safetensors"
#: Written last, with the size of every file: a folder without it was cut off while it was written.
COMPLETE_FILE = "complete.json"


def save_state(folder: Path, state: nn.Module):
    """Write the state beside the Trainer's files; appears under its name only once it is whole."""
    aside = folder / f".{STATE_FILE}.partial"
    save_file({name: tensor.contiguous() for name, tensor in state.state_dict().items()}, aside)
    os.replace(aside, folder / STATE_FILE)


def load_state(folder: Path, state: nn.Module):
    """Fill `state` from a checkpoint folder.

    Raises:
        ValueError: the folder has no distillation state, or one of other parts or sizes; says how to proceed.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no distillation state ({STATE_FILE}): it comes from a run without these callbacks. To go on "
            "without distillation leave the callback out; to begin distilling from its weights start a new run from "
            "them, or give the callback missing_state='start', which begins with a teacher equal to the student and an "
            "empty queue"
        )
    saved, ours = load_file(path), state.state_dict()
    different = [
        f"{name} is {_shape(saved.get(name))} there and {_shape(ours.get(name))} here"
        for name in sorted(saved.keys() | ours.keys())
        if _shape(saved.get(name)) != _shape(ours.get(name))
    ]
    if different:
        raise ValueError(
            f"{path} does not fit this run: {'; '.join(different[:3])}"
            f"{f' and {len(different) - 3} more' if len(different) > 3 else ''}. Resume with the model, callbacks, "
            "queue_size and batch size of the run that wrote it"
        )
    state.load_state_dict(saved)


def _shape(tensor) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def mark_complete(folder: Path):
    """Note the size of every file of a checkpoint, after all of them have been written."""
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes.pop(COMPLETE_FILE, None)
    aside = folder / f".{COMPLETE_FILE}.partial"
    aside.write_text(json.dumps({"files": sizes}, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(aside, folder / COMPLETE_FILE)


def is_complete(folder: Path) -> bool:
    """Whether a folder carries the mark, and every file has the size that was noted."""
    try:
        sizes = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def last_complete(output: Path) -> Path | None:
    """The complete checkpoint of the most steps within a Trainer's output folder."""
    folders = [p for p in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and is_complete(p)]
    return max(folders, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def require_complete(folder: Path):
    """Refuse to resume from a checkpoint that was cut off.

    Raises:
        ValueError: names the last complete checkpoint beside it.
    """
    if is_complete(folder):
        return
    last = last_complete(folder.parent)
    way = f"resume from {last}" if last else f"there is no complete one in {folder.parent}: start anew"
    raise ValueError(f"{folder} is not complete: it was cut off while it was written (no valid {COMPLETE_FILE}); {way}")

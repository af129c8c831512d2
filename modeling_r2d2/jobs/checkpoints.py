"""The distillation state in a Trainer's checkpoint folder, and the mark that a folder is complete."""

import errno
import itertools
import json
import logging
import os
import re
import shutil
from pathlib import Path, PurePath

from safetensors.torch import load_file
from torch import nn

from ..processing.files.writing import partial_path, save_safetensors, write_text

logger = logging.getLogger(__name__)

STATE_FILE = "distillation.safetensors"
#: Written last, with the size of every file: a folder without it was cut off while it was written.
COMPLETE_FILE = "complete.json"


def save_state(folder: Path, state: nn.Module):
    """Write the state beside the Trainer's files; appears under its name only once it is whole."""
    save_safetensors(state.state_dict(), folder / STATE_FILE)


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
    write_text(folder / COMPLETE_FILE, json.dumps({"files": sizes}, indent=1, ensure_ascii=False))


def is_complete(folder: Path) -> bool:
    """Whether a folder carries the mark, and every file has the size that was noted."""
    sizes = _noted_sizes(folder)
    return sizes is not None and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )


def damage(folder: Path) -> str:
    """What is wrong with a folder that is not complete, for a message."""
    sizes = _noted_sizes(folder)
    if sizes is None:
        return f"no valid {COMPLETE_FILE}"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has another size than it was written with"
    return "nothing"


def _noted_sizes(folder: Path) -> dict[str, int] | None:
    try:
        sizes = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))["files"]
        inside = all(not PurePath(name).is_absolute() and ".." not in PurePath(name).parts for name in sizes)
        return sizes if inside else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def complete_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints within a run's folder, fewest steps first."""
    folders = [p for p in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and is_complete(p)]
    return sorted(folders, key=steps_of)


def steps_of(folder: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    return int(folder.name.rpartition("-")[2])


def last_complete(output: Path) -> Path | None:
    """The complete checkpoint of the most steps within a run's folder."""
    return next(reversed(complete_checkpoints(output)), None)


def foreign_files(folder: Path) -> list[str]:
    """Relative names of what lies in a checkpoint's folder and is not as its mark says: all of one without a mark."""
    sizes = {} if folder.is_symlink() else _noted_sizes(folder) or {}
    names = [(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*")) if p.is_symlink() or p.is_file()]
    own = {name for path, name in names if not path.is_symlink() and sizes.get(name) == path.stat().st_size}
    return [name for _, name in names if name not in own and not (sizes and name == COMPLETE_FILE)]


def remove_checkpoint(folder: Path) -> None:
    """Remove the files that a checkpoint's mark names, and the folder where nothing else is in it."""
    foreign = set(foreign_files(folder))
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in foreign
    ]
    # the mark last: a removal that is interrupted can be taken up
    for path in sorted(paths, key=lambda path: path == folder / COMPLETE_FILE):
        path.unlink()
    for inner in sorted((p for p in (folder, *folder.rglob("*")) if p.is_dir() and not p.is_symlink()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()


def refuse_foreign_checkpoints(output: Path) -> None:
    """Raise where a folder bears a checkpoint's name and holds files that no mark of ours names.

    Raises:
        FileExistsError: names it.
    """
    for folder in sorted(output.glob("checkpoint-*")):
        if folder.is_dir() and not (_noted_sizes(folder) is not None and not foreign_files(folder)):
            raise FileExistsError(
                errno.EEXIST,
                f"{folder} is no checkpoint of this program, or holds other files too "
                f"({', '.join(foreign_files(folder)[:3]) or 'it is empty'}): move it away, or choose another folder",
            )


def place_checkpoint(new: Path, place: Path) -> None:
    """Rename a finished folder to `place`; a checkpoint that is there (the same step trained again) gives way.

    What is there and is not whole and ours alone, as a damaged checkpoint, is kept under another name, and said: a run
    does not end for it.
    """
    if not place.is_symlink() and not place.exists():
        os.replace(new, place)
        return
    if place.is_symlink() or not place.is_dir() or foreign_files(place):
        kept = next(
            path
            for number in itertools.count(1)
            if not (path := place.with_name(f"{place.name}-kept-{number}")).exists()
        )
        os.replace(place, kept)
        os.replace(new, place)
        logger.warning("%s was damaged, or held other files: it is kept as %s", place, kept)
        return
    old = partial_path(place.parent)
    os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old)


def rotate_checkpoints(output: Path, newest: Path, limit: int | None, best: Path | None = None) -> None:
    """Remove all complete checkpoints but the `limit` last ones, of which the best is one.

    Those of more steps than `newest` are of a run that this one has replaced, and go first. Clocks are not asked.
    """
    if limit is None or limit <= 0:
        return
    found = [folder for folder in complete_checkpoints(output) if folder != best]
    found.sort(key=lambda folder: (steps_of(folder) <= steps_of(newest), steps_of(folder)))
    keep = max(limit - (best is not None and best.exists()), 1)
    for folder in found[:-keep]:
        remove_checkpoint(folder)


def require_complete(folder: Path):
    """Refuse to resume from a checkpoint that was cut off.

    Raises:
        ValueError: names the last complete checkpoint beside it.
    """
    if is_complete(folder):
        return
    last = last_complete(folder.parent)
    way = f"resume from {last}" if last else f"there is no complete one in {folder.parent}: start anew"
    raise ValueError(
        f"{folder} is not complete: it was cut off while it was written, or damaged since ({damage(folder)}); {way}"
    )

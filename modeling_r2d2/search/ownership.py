"""Which files of a folder are the index's: what its manifest names, and what a change under way has written.

While an index is changed, `.building.json` says what the change may leave behind: the files of the state before, which
the next manifest may not name any more, and the number from which its new files are counted. It is written before
anything else and removed last, so that after a kill the next change knows what is the index's and clears it away.
Nothing that neither the manifest nor this file names is ever removed.
"""

import errno
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..processing.files.writing import clean_leftovers, foreign_entries, refuse_no_folder, write_text
from .manifest import DATA, MANIFEST, REPORT, Manifest

BUILDING = ".building.json"
_NEW = re.compile(r"(\d{8,})\.(rows|embeds|texts|states|alive|part)")
#: Also the files of the shards of earlier formats.
_OURS = re.compile(rf"{DATA}/{_NEW.pattern}|shards/\d{{8}}\.(rows|embeds|cache|json)|vectors\.\d{{6,}}\.faiss")


@dataclass(frozen=True)
class Building:
    """A change of an index that is not finished.

    Attributes:
        run: Model, preprocessing and options, for only the same may go on with its parts.
        generation: Of the state that it began with.
        first: The least number of its files; no file bore it, or a larger one, when it began.
        before: Names of the files of the state that it began with.
    """

    run: str
    generation: int
    first: int
    before: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, manifest: Manifest, run: str) -> "Building":
        """The change to make: the interrupted one, where that was the same, or another. Reads only."""
        left = cls.read(root)
        if left is not None and (left.run, left.generation) == (run, manifest.generation):
            return left
        going = {path.name for path in left.leftovers(root)} if left is not None else set()
        staying = [name for name in _names(root) if name not in going or f"{DATA}/{name}" in manifest.files]
        numbers = (int(found[0]) for name in staying if (found := re.match(r"\d{8,}(?=\.)", name)))
        return cls(run, manifest.generation, max(numbers, default=-1) + 1, tuple(sorted(manifest.files)))

    def begin(self, root: Path, keep: Iterable[str] = ()) -> None:
        """Note that it begins, and clear away what interrupted changes have left but the files `keep`."""
        left = self.read(root)
        if left is not None:
            left.clear(root, {*keep, *self.before})
        write_text(root / BUILDING, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, root: Path) -> "Building | None":
        """What an interrupted change has left; None where there is none."""
        path = root / BUILDING
        if path.is_symlink() or not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            before = tuple(map(str, held["before"]))
            return cls(str(held["run"]), int(held["generation"]), int(held["first"]), before)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def vectors(self) -> str:
        """Name of the vector index that it writes."""
        return vectors_of(self.generation + 1)

    def leftovers(self, root: Path) -> list[Path]:
        """Files that it has written so far but its vector index."""
        found = ((name, _NEW.fullmatch(name)) for name in _names(root))
        return [root / DATA / name for name, new in found if new and int(new[1]) >= self.first]

    def clear(self, root: Path, keep: Iterable[str]) -> None:
        """Remove what it has left but the files `keep`; not this note."""
        own = {root / name for name in (*self.before, self.vectors) if _OURS.fullmatch(name)}
        for path in own.union(self.leftovers(root)) - {root / name for name in keep}:
            path.unlink(missing_ok=True)
        for folder in (root, root / DATA):
            clean_leftovers(folder, alone=True)

    def finish(self, root: Path, keep: Iterable[str]) -> None:
        """Remove what is left of it, then the note itself."""
        self.clear(root, keep)
        for folder in (root / DATA, root / "shards"):
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
        (root / BUILDING).unlink(missing_ok=True)


def vectors_of(generation: int) -> str:
    """Name of the vector index that a generation writes."""
    return f"vectors.{generation:06}.faiss"


def _names(root: Path) -> list[str]:
    return os.listdir(root / DATA) if (root / DATA).is_dir() else []


def refuse_foreign(root: Path, rebuild: bool = False) -> None:
    """Raise unless an index is at `root`, or may be made there. Reads only.

    Args:
        rebuild: It may be one of an earlier release.

    Raises:
        FileExistsError: The folder holds something else.
        NotADirectoryError: A file is in the way.
        IndexFileError: The manifest is torn, or is none of an index.
    """
    refuse_no_folder(root)
    if not root.is_dir():
        return
    building = Building.read(root)
    if (root / MANIFEST).exists():
        vectors = vectors_of(Manifest.load(root, to_remake=rebuild).generation + 1)
        if (root / vectors).exists() and (building is None or building.vectors != vectors):
            raise _foreign(root / vectors, "has a name that the index needs")
    elif building is None:
        held = [name for name in foreign_entries(root) if name != ".lock" or (root / name).stat().st_size]
        if held:
            listed = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
            raise FileExistsError(
                errno.EEXIST,
                f"{root} holds no index, but {listed}: an index needs a folder of its own, name a new one",
            )
    if not _is_report(root / REPORT):
        raise _foreign(root / REPORT, "has the name of the index's list of unreadable pictures")


def _foreign(path: Path, reason: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"{path} {reason} and is not the index's: move it away")


def _is_report(path: Path) -> bool:
    """Whether the list of unreadable pictures is not there, or is one of ours."""
    if path.is_symlink():
        return False
    if not path.exists():
        return True
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as file:
            return all({"location", "reason"} <= json.loads(line).keys() for line in file)
    except (ValueError, AttributeError, RecursionError):
        return False


__all__ = ["BUILDING", "Building", "refuse_foreign", "vectors_of"]

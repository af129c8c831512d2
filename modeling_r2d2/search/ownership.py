"""Which files of a folder are the index's: what its manifest names, and what a change under way has written.

While an index is changed, `.building.json` says what the change may leave behind: the files of the state before, which
the next manifest may not name any more, and the numbers from which new shards begin. It is written before anything
else and removed last, so that after a kill the next change knows what is the index's and clears it away. Nothing that
neither the manifest nor this file names is ever removed.
"""

import errno
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..processing.files.writing import clean_leftovers, foreign_entries, refuse_no_folder, write_text
from .manifest import MANIFEST, REPORT, SHARDS, Manifest, ShardRecord

BUILDING = ".building.json"
_SHARD_FILE = re.compile(r"(\d{8})\.(rows|embeds|cache|json)")
_VECTORS_FILE = re.compile(r"vectors\.\d{6,}\.faiss")


@dataclass(frozen=True)
class Building:
    """A change of an index that is not finished.

    run: model, preprocessing and options, for only the same may go on with its shards. first: number of its first
    shard. before: relative names of the files of the state that it began with, and of shards that an interrupted change
    has left. vectors: name of its vector index. theirs: names of others' files among the shards.
    """

    run: str
    first: int
    before: tuple[str, ...]
    vectors: str
    theirs: tuple[str, ...] = ()

    @classmethod
    def begin(cls, root: Path, manifest: Manifest, run: str, pending: Sequence[ShardRecord] = ()) -> "Building":
        """Clear away what interrupted changes have left, but the shards `pending`; note that a change begins."""
        keep = files_of(manifest).union(*(files_of_shard(record.name, record.files) for record in pending))
        if (left := cls.read(root)) is not None:
            left.clear(root, keep)
        shards = root / SHARDS
        held = {path.name for path in shards.iterdir()} if shards.is_dir() else set()
        theirs = sorted(name for name in held if f"{SHARDS}/{name}" not in keep)
        # what is not gone on with in the end is removed like the state before
        building = replace(cls.after(manifest, run), before=tuple(sorted(keep)), theirs=tuple(theirs))
        write_text(root / BUILDING, json.dumps(asdict(building), indent=1, ensure_ascii=False) + "\n")
        return building

    @classmethod
    def after(cls, manifest: Manifest, run: str) -> "Building":
        """What a change that begins with the state of `manifest` would write."""
        first = max((int(record.name) for record in manifest.shards), default=-1) + 1
        return cls(run, first, tuple(sorted(files_of(manifest))), f"vectors.{manifest.generation + 1:06}.faiss")

    @classmethod
    def read(cls, root: Path) -> "Building | None":
        """What an interrupted change has left; None where there is none."""
        path = root / BUILDING
        if path.is_symlink() or not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            lists = (tuple(map(str, held[name])) for name in ("before", "theirs"))
            return cls(str(held["run"]), int(held["first"]), next(lists), str(held["vectors"]), next(lists))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def clear(self, root: Path, keep: set[str]) -> None:
        """Remove what it has left, but the files of the relative names `keep`; not this note."""
        shards = root / SHARDS
        own = {name for name in (*self.before, self.vectors) if _is_of_index(name)}
        for path in shards.iterdir() if shards.is_dir() else ():
            found = _SHARD_FILE.fullmatch(path.name)
            if found and int(found[1]) >= self.first and path.name not in self.theirs:
                own.add(f"{SHARDS}/{path.name}")
        for name in own - keep:
            (root / name).unlink(missing_ok=True)
        for folder in (root, shards):
            clean_leftovers(folder, alone=True)

    def finish(self, root: Path, keep: set[str]) -> None:
        """Remove what is left of it, then the note itself."""
        self.clear(root, keep)
        if (root / SHARDS).is_dir() and not any((root / SHARDS).iterdir()):
            (root / SHARDS).rmdir()
        (root / BUILDING).unlink(missing_ok=True)


def files_of(manifest: Manifest) -> set[str]:
    """Relative names of the files that a manifest names."""
    names = {name for record in manifest.shards for name in files_of_shard(record.name, record.files)}
    return names | ({manifest.vectors["file"]} if manifest.vectors.get("file") else set())


def files_of_shard(name: str, kinds: Iterable[str]) -> set[str]:
    """Relative names of a shard's files."""
    return {f"{SHARDS}/{name}.{kind}" for kind in (*kinds, "json")}


def numbers_in_use(root: Path) -> set[int]:
    """Numbers that any file in the folder of shards bears, whosever it is: no new shard takes them."""
    shards = root / SHARDS
    names = (re.match(r"\d{8}(?=\.)", path.name) for path in (shards.iterdir() if shards.is_dir() else ()))
    return {int(found[0]) for found in names if found}


def refuse_foreign(root: Path, rebuild: bool = False) -> None:
    """Raise unless an index is at `root`, or may be made there. Reads only.

    Args:
        rebuild: it may be one of an earlier release.

    Raises:
        FileExistsError: the folder holds something else. NotADirectoryError: a file is in the way. IndexFileError: the
            manifest is torn, or is none of an index.
    """
    refuse_no_folder(root)
    if not root.is_dir():
        return
    building = Building.read(root)
    if (root / MANIFEST).exists():
        manifest = Manifest.load(root, to_remake=rebuild)
        vectors = Building.after(manifest, "").vectors
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


def _is_of_index(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return bool(_SHARD_FILE.fullmatch(file) if folder == SHARDS else not folder and _VECTORS_FILE.fullmatch(file))


__all__ = ["BUILDING", "Building", "files_of", "files_of_shard", "numbers_in_use", "refuse_foreign"]

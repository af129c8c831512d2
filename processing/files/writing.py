"""Files and folders on the disk: written whole or not at all, readable by whom umask allows, and only ours replaced.

Whatever the package writes goes through `atomic_path` (a file) or `staged_folder` (several that belong together): it is
written under a name that only this package uses, brought to the disk, and renamed. A process that is killed leaves such
a partial file or folder behind, and `clean_leftovers` removes it in the next run.

`Stamp` names the files of a folder that the package wrote. Only these are ever removed or replaced.
"""

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

STAMP = ".r2d2.json"
#: What systems leave in folders that are empty to their owners.
_INCIDENTAL = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".gitignore", "lost+found", ".lock", "@eaDir"}
_PARTIAL = re.compile(r"\.r2d2-partial-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+(\..*)?")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|os error (28|122|27)\b|errno (28|122|27)\b", re.I
)
#: A partial file of a machine that cannot be asked is taken for a leftover after so many seconds.
_FORGOTTEN = 86_400
#: Files up to this size are compared by their content, larger ones by their size.
_DIGESTED = 1 << 20
_numbers = itertools.count()
_active: set[str] = set()


# -- one file ---------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | PathLike) -> Iterator[Path]:
    """A path to write to that becomes `path`, on the disk, when all went well, and vanishes when it did not.

    Folders above are made. A symbolic link is replaced, what it points to stays. What is no file (`/dev/stdout`) is
    written to directly.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the disk is full or may not be written to; names the file.
    """
    path = Path(path)
    with explained(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder: name a file")
        if path.exists() and not path.is_file():
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path.parent, path.suffix)
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = stat.S_IMODE(partial.stat().st_mode)  # as umask, or the folder's access list, has it
            yield partial
            partial.chmod(mode)  # libraries make their own files, some for their owner alone
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            _active.discard(partial.name)


def write_text(path: str | PathLike, text: str, encoding: str = "utf-8") -> None:
    """Write a text file whole or not at all; raises as `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding=encoding)


def save_safetensors(tensors: Mapping[str, Any], path: str | PathLike, metadata: dict[str, str] | None = None) -> None:
    """Write tensors (made contiguous) to a safetensors file, whole or not at all; raises as `atomic_path`."""
    from safetensors.torch import save_file

    with atomic_path(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)


@contextmanager
def explained(place: str | PathLike) -> Iterator[None]:
    """Turns what libraries raise when the disk is full or may not be written to into one `OSError` that names `place`.

    Raises:
        OSError: with the system's `errno`.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "explained", False):
            raise
        if is_disk_full(error, Path(place)):
            number = error.errno if isinstance(error, OSError) and error.errno in _FULL else errno.ENOSPC
            text = f"the disk of {place} is full ({os.strerror(number).lower()}): make room and run the same again"
        elif _is_forbidden(error, Path(place)):
            number = error.errno or errno.EACCES
            text = f"{error.filename or place} may not be written to: {os.strerror(number)}"
        else:
            raise
        clear: Any = OSError(number, text)
        clear.explained = True
        raise clear from error


def _is_forbidden(error: Exception, place: Path) -> TypeGuard[OSError]:
    """Whether `place`, and not something that was read meanwhile, may not be written to."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return False
    named = error.filename if isinstance(error.filename, str | PathLike) else place
    return Path(named).absolute().is_relative_to(place.absolute().parent)


def is_disk_full(error: BaseException | None, place: Path | None = None) -> bool:
    """Whether an error, or one that it was raised from, says that there is no room.

    Args:
        place: where was being written; torch's own errors do not give the reason, so that the disk is asked.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError":
            if _FULL_WORDS.search(str(error)):
                return True
            if "inline_container" in str(error) and place is not None and _free_bytes(place) < _DIGESTED:
                return True
        error = error.__cause__ or error.__context__
    return False


# -- several files that belong together --------------------------------------------------------------


@contextmanager
def staged_folder(
    output: str | PathLike, command: str, last: Iterable[str] = ("config.json",), stale: Iterable[str] = ()
) -> Iterator[Path]:
    """A folder to write to whose files move into `output` when all went well, and vanish when it did not.

    The moved files are noted in the stamp of `output`; those that the stamp named before stay, and stay named.
    Whether `output` may be written to is `claim_folder`'s question, to be asked first.

    Args:
        command: who writes.
        last: files that make the folder count as whole; they move after the others, in this order.
        stale: patterns of earlier files of ours (by the stamp) that go, unless they were written anew.

    Raises:
        FileExistsError: a folder or a link of the name of a new file.
        OSError: as `atomic_path`.
    """
    output = Path(output)
    with explained(output):
        made_here = [place for place in (output, *output.parents) if not place.exists()]
        output.mkdir(parents=True, exist_ok=True)
        partial = partial_path(output)
        try:
            partial.mkdir()
            yield partial
            made = _files_in(partial)
            _publish(partial, output, command, list(last))
            remove_owned(output, stale, but=made)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _active.discard(partial.name)
            for place in made_here:  # nothing came of it
                if not any(place.iterdir()):
                    place.rmdir()


def _publish(partial: Path, output: Path, command: str, last: list[str]) -> None:
    names = sorted(_files_in(partial), key=lambda name: last.index(name) if name in last else -1)
    for name in names:
        if (output / name).is_dir():
            raise FileExistsError(errno.EEXIST, f"{output / name} is a folder, and a file is to be written there")
    make_readable(partial)
    for name in names:
        _sync(partial / name)
    before = Stamp.read(output) or Stamp(command)
    made = Stamp.of(partial, command, names)
    Stamp(command, before.files, made.files).write(output)  # whatever happens now, all that is there has a name
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, output / name)
    _sync(output)
    Stamp(command, before.files | made.files).write(output)


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]


def make_readable(folder: str | PathLike, pattern: str = "*") -> None:
    """Give every file below (of a name like `pattern`) the mode that umask allows; some libraries write for their
    owner alone."""
    folder = Path(folder)
    probe = partial_path(folder)
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
        _active.discard(probe.name)
    for path in folder.rglob(pattern):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def partial_path(folder: Path, suffix: str = "") -> Path:
    """A name in a folder for what is not finished: `clean_leftovers` removes it once this process is dead."""
    name = f".r2d2-partial-{_host()}-{os.getpid()}-{next(_numbers)}{suffix}"
    _active.add(name)
    return folder / name


def clean_leftovers(folder: str | PathLike, alone: bool = False) -> list[Path]:
    """Remove what killed processes left half-written in a folder; returns what was removed.

    Args:
        alone: nobody else writes here (the caller holds the folder's lock). Otherwise what a living process of this
            machine writes stays, and so does what another machine wrote within a day.
    """
    removed = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        found = _PARTIAL.fullmatch(path.name)
        if found is None or path.name in _active or not (alone or _is_forgotten(path, found)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def is_partial(path: str | PathLike) -> bool:
    """Whether a name is one that half-written files and folders of this package have."""
    return _PARTIAL.fullmatch(Path(path).name) is not None


# -- whose a folder is --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """Which files of a folder this package wrote; the file `.r2d2.json` in it.

    Args:
        command: that wrote last.
        files: relative name -> size and, of small files, digest.
        pending: the same of files that were about to be moved in.
    """

    command: str
    files: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str | PathLike, command: str, names: Iterable[str]) -> "Stamp":
        """The stamp of files that lie in a folder."""
        return cls(command, {name: _fingerprint(Path(folder) / name) for name in names})

    @classmethod
    def read(cls, folder: str | PathLike) -> "Stamp | None":
        """The stamp of a folder; None where there is none, or none that is whole."""
        path = Path(folder) / STAMP
        if path.is_symlink() or not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            checksum = held.pop("checksum")
            stamp = cls(**held)
            inside = all(not PurePosixPath(n).is_absolute() and ".." not in PurePosixPath(n).parts for n in stamp.names)
            return stamp if inside and checksum == _checksum(held) else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self, folder: str | PathLike) -> None:
        """Replace the stamp of a folder."""
        held = {"command": self.command, "files": self.files, "pending": self.pending}
        text = json.dumps({**held, "checksum": _checksum(held)}, indent=1, ensure_ascii=False)
        write_text(Path(folder) / STAMP, text + "\n")

    def owns(self, folder: str | PathLike, name: str) -> bool:
        """Whether a file is named here and still as it was written."""
        known = {each[name] for each in (self.files, self.pending) if name in each}
        path = Path(folder) / name
        if not known or path.is_symlink() or not path.is_file():
            return False
        if path.parent.resolve() != (Path(folder).resolve() / name).parent:  # a folder on the way is a link elsewhere
            return False
        return _fingerprint(path) in known

    def owns_entry(self, folder: str | PathLike, name: str) -> bool:
        """Whether a file directly in the folder is ours, or a folder in it holds nothing but ours."""
        path = Path(folder) / name
        if name == STAMP:
            return True
        if not path.is_dir() or path.is_symlink():
            return self.owns(folder, name)
        return all(self.owns(folder, f"{name}/{inner}") for inner in _files_in(path))

    @property
    def names(self) -> list[str]:
        """All that it names."""
        return sorted({*self.files, *self.pending})


def note_written(folder: str | PathLike, command: str, names: Iterable[str]) -> None:
    """Add files that were just written to the stamp of their folder."""
    before, made = Stamp.read(folder) or Stamp(command), Stamp.of(folder, command, names)
    Stamp(command, before.files | made.files, before.pending).write(folder)


def remove_owned(folder: str | PathLike, patterns: Iterable[str] = ("*",), but: Iterable[str] = ()) -> list[str]:
    """Remove the files that the folder's stamp names and that are as they were written; returns their names.

    Everything else stays: what was added, edited or linked by others. Folders that become empty go too.

    Args:
        patterns: of relative names ("adapter/*"; "*" matches slashes too).
        but: names that stay.
    """
    folder, patterns, kept = Path(folder), list(patterns), set(but)
    stamp = Stamp.read(folder)
    if stamp is None:
        return []
    chosen = [name for name in stamp.names if name not in kept and any(fnmatchcase(name, p) for p in patterns)]
    removed = [name for name in chosen if stamp.owns(folder, name)]
    if not removed:
        return []
    for name in removed:
        (folder / name).unlink()
    for parent in sorted({p for name in removed for p in Path(name).parents if p != Path()}, reverse=True):
        if not any((folder / parent).iterdir()):
            (folder / parent).rmdir()
    parts = ({n: mark for n, mark in part.items() if n not in removed} for part in (stamp.files, stamp.pending))
    Stamp(stamp.command, *parts).write(folder)
    return removed


def foreign_entries(folder: str | PathLike) -> list[str]:
    """Names directly in a folder that are neither the package's partial files nor what systems leave everywhere."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name not in _INCIDENTAL and not is_partial(path))


def claim_folder(
    output: str | PathLike,
    held: Iterable[str] = ("config.json", "*.safetensors", "checkpoint-*"),
    needs: Iterable[str] = (),
    overwrite: bool = False,
    resume: bool | None = None,
) -> None:
    """Raise unless a command may write its files into a folder; clear what killed runs have left half-written there.

    Args:
        held: patterns of what makes it the folder of an earlier result, which `overwrite` replaces or `resume` goes on
            with (None: this command cannot).
        needs: files and folders that the command writes besides, which must not be somebody's.

    Raises:
        FileExistsError: an earlier result, and neither was asked for; files of others, and `overwrite` was not asked
            for; a file of others in the way, whatever was asked for.
        NotADirectoryError: a file is in the way.
    """
    output = Path(output)
    refuse_no_folder(output)
    if not output.is_dir():
        return
    clean_leftovers(output)
    stamp = Stamp.read(output)
    foreign = [name for name in foreign_entries(output) if stamp is None or not stamp.owns_entry(output, name)]
    found = sorted(path.name for pattern in held for path in output.glob(pattern))
    if found and not overwrite and not resume:
        if resume is None:
            raise FileExistsError(
                errno.EEXIST, f"{output} already holds a model ({_listed(found)}): --overwrite replaces it"
            )
        raise FileExistsError(
            errno.EEXIST,
            f"{output} already holds {_listed(found)}: choose another folder, `--overwrite` to replace it or "
            "`--resume` to go on from its last checkpoint",
        )
    if foreign and not overwrite and not resume:
        raise FileExistsError(
            errno.EEXIST,
            f"{output} holds something else ({_listed(foreign)}): name a new folder, or `--overwrite` to write beside "
            "it",
        )
    for name in needs:
        if name in foreign and not resume:
            raise FileExistsError(
                errno.EEXIST,
                f"{output / name} is not, or no longer, as this program wrote it: move it away, or "
                "choose another folder",
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refuse_output(output: str | PathLike | None, *sources: str | PathLike | None) -> None:
    """Raise where a file to be written is one that is read, or lies among those that are.

    Args:
        sources: files, folders or patterns that are read; None is none.

    Raises:
        FileExistsError: names it.
        IsADirectoryError: the output is a folder.
    """
    if output is None or not Path(output).exists():
        return
    output = Path(output)
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{output} is a folder: name a file")
    for source in sources:
        if source is None:
            continue
        place = Path(source)
        if set("*?[{") & set(place.name):
            place = place.parent
        inside = place.is_dir() and output.resolve().is_relative_to(place.resolve())
        if inside or (place.exists() and output.samefile(place)):
            raise FileExistsError(errno.EEXIST, f"{output} is there already, and part of {source}: name another file")


def refuse_no_folder(output: str | PathLike) -> None:
    """Raise unless a folder could be at `output`, or is.

    Raises:
        NotADirectoryError: a file is there, or above it.
        OSError: it may not be looked into.
    """
    output = Path(output)
    for place in (output, *output.absolute().parents):
        if place.is_dir():
            break
        if place.exists() or place.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file, not a folder, and cannot be written to as one")


# -- inside --------------------------------------------------------------------------------------------


def _host() -> str:
    return hashlib.blake2s(platform.node().encode(), digest_size=4).hexdigest()


def _is_forgotten(path: Path, found: re.Match) -> bool:
    if found["host"] != _host():
        return time.time() - path.lstat().st_mtime > _FORGOTTEN
    if int(found["pid"]) == os.getpid():  # a process before us had our number
        return True
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    if size > _DIGESTED:
        return str(size)
    return f"{size} {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"


def _checksum(held: dict[str, Any]) -> str:
    text = json.dumps(held, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _free_bytes(place: Path) -> int:
    for folder in (place, *place.absolute().parents):
        if folder.exists():
            return shutil.disk_usage(folder).free
    return 1 << 60


def _sync(path: Path) -> None:
    """Have a file, or the names within a folder, on the disk; not every system lets a folder be opened."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = [
    "STAMP",
    "Stamp",
    "atomic_path",
    "claim_folder",
    "clean_leftovers",
    "explained",
    "foreign_entries",
    "is_disk_full",
    "is_partial",
    "make_readable",
    "note_written",
    "partial_path",
    "refuse_no_folder",
    "refuse_output",
    "remove_owned",
    "save_safetensors",
    "staged_folder",
    "write_text",
]

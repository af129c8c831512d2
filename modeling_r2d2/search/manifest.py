"""What an index on disk consists of, which model made it, and checksums of every file.

The manifest is the index: it is replaced in one rename, after everything that it names lies on the disk, so a reader
sees the state before or after a change and never a part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..inference.identity import ModelIdentity, canonical
from ..inference.loading import is_onnx_export
from ..processing.files.digests import digest_of_file
from ..processing.files.writing import write_text
from .remaking import folder_of, remake_command

FORMAT = 2
#: An index of these is recognised, and can be made anew in its place.
_EARLIER = (1,)
MANIFEST = "manifest.json"
SHARDS = "shards"
REPORT = "unreadable.jsonl"


class IndexFileError(ValueError):
    """An index, or one of its files, is missing, torn, edited, or of another version. Names the file."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the index: its size in bytes and the blake2b digest of its content (None: rows have their own)."""

    size: int
    digest: str | None

    @classmethod
    def of(cls, path: Path, hashed: bool = True) -> "FileRecord":
        """Size and digest of a file as it is now."""
        return cls(path.stat().st_size, digest_of_file(path) if hashed else None)

    def check(self, path: Path) -> None:
        """Raise `IndexFileError` unless the file is there and as it was written."""
        if not path.is_file():
            raise IndexFileError(f"{path} is missing: index the pictures anew, or restore the file")
        self.check_size(path, path.stat().st_size)
        self._check_digest(path, digest_of_file(path) if self.digest is not None else None)

    def check_size(self, path: Path, size: int) -> None:
        """Raise `IndexFileError` unless this is its size."""
        if size != self.size:
            raise IndexFileError(f"{path} is torn: {size} bytes instead of {self.size}; index anew")

    def check_content(self, path: Path, data: Any) -> None:
        """Raise `IndexFileError` unless this is its content."""
        if self.digest is not None:
            self._check_digest(path, hashlib.blake2b(data, digest_size=16).hexdigest())

    def _check_digest(self, path: Path, digest: str | None) -> None:
        if self.digest is not None and digest != self.digest:
            raise IndexFileError(f"{path} was changed after it was written (its checksum differs); index anew")


@dataclass(frozen=True)
class ShardRecord:
    """A shard: `name`, how many pictures and texts it holds, its files by kind.

    unreadable: what could not be read while it was encoded, for the process that publishes it; not in a manifest.
    """

    name: str
    rows: int
    texts: int
    files: dict[str, FileRecord]
    unreadable: list[dict] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict) -> "ShardRecord":
        """From JSON."""
        return cls(**{**values, "files": {kind: FileRecord(**file) for kind, file in values["files"].items()}})

    def path(self, root: Path, kind: str) -> Path:
        """Where the file of a kind lies."""
        return root / SHARDS / f"{self.name}.{kind}"


@dataclass(frozen=True)
class Manifest:
    """The state of an index.

    dimension: of the embeddings. cache: what is kept for the ranker (`CacheOptions` as a dictionary). shards: in the
    order of their pictures. vectors: kind and settings of the vector index and its file. generation: changes so far.
    unreadable: [{"id", "location", "reason", "size", "mtime_ns", "path", "source"}] of what was skipped. sources: what
    the pictures were listed from, as words of a command line.
    """

    model: ModelIdentity
    dimension: int
    cache: dict
    shards: tuple[ShardRecord, ...] = ()
    vectors: dict = field(default_factory=dict)
    generation: int = 0
    unreadable: tuple[dict, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Pictures in the index."""
        return sum(shard.rows for shard in self.shards)

    def remake_command(self, root: Path, model: str | None = None) -> str:
        """The command that makes the index anew in its place, by default with its own model."""
        sources = self.sources or tuple(folder_of(shard.path(root, "rows")) for shard in self.shards[:1])
        return remake_command(root, sources, model or self.model.source, self.cache)

    def refuse_other(self, given: ModelIdentity, root: Path) -> None:
        """Raise unless a model computes what the index's did.

        Raises:
            OtherModelError: says what differs, and the command that makes the index anew.
        """
        self.model.refuse_other(given, root, self.remake_command(root, given.source))

    def to_dict(self) -> dict:
        """For JSON, without the checksum."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, root: Path) -> None:
        """Replace the manifest of `root` in one step."""
        body = self.to_dict()
        body["checksum"] = hashlib.blake2b(canonical(body), digest_size=16).hexdigest()
        write_text(root / MANIFEST, json.dumps(body, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, root: Path, to_remake: bool = False) -> "Manifest":
        """Read and check the manifest of `root`.

        Args:
            to_remake: also of an earlier format, of which only what `remake_command` and a rebuild need is known.

        Raises:
            IndexFileError: there is none, it is torn or edited, or of another format.
        """
        path = root / MANIFEST
        if not path.is_file() or is_onnx_export(root):
            if not root.exists():
                raise IndexFileError(f"no such folder: {root}; an index is made with `r2d2 index`")
            started = (root / ".building.json").is_file()
            hint = (
                "an interrupted run has not finished it: run the same `r2d2 index` again"
                if started
                else ("make one with `r2d2 index PICTURES --model DIR --output INDEX`")
            )
            if (root / "config.json").is_file():
                hint = f"it is a model: make an index with `r2d2 index PICTURES --model {root} --output INDEX`"
            raise IndexFileError(f"{root} holds no index ({MANIFEST} is missing); {hint}")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(body, dict) and not {"format", "shards", "checksum"} <= body.keys():
                raise IndexFileError(f"{root} holds no index: its {MANIFEST} is of something else")
            version = body.pop("format")
        except IndexFileError:
            raise
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise IndexFileError(f"{path} is torn or no manifest ({error}); index the pictures anew") from error
        if version not in (FORMAT, *_EARLIER):
            raise IndexFileError(
                f"{path}: an index of format {version}, and this release reads format {FORMAT}; index the pictures anew"
            )
        checksum = body.pop("checksum", None)
        if checksum != hashlib.blake2b(canonical({"format": version, **body}), digest_size=16).hexdigest():
            raise IndexFileError(f"{path} was changed after it was written (its checksum differs); index anew")
        lists = {name: tuple(body.pop(name, ())) for name in ("unreadable", "sources")}
        found = cls(
            model=ModelIdentity(**body.pop("model")),
            shards=tuple(ShardRecord.from_dict(shard) for shard in body.pop("shards")),
            **lists,
            **body,
        )
        if version != FORMAT and not to_remake:
            raise IndexFileError(
                f"{root} was made by an earlier release (format {version}; this one reads {FORMAT}), which did not "
                f"turn photographs upright: make it anew: {found.remake_command(root)}"
            )
        return found

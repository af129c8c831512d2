"""What an index on disk consists of, which model made it, and checksums of every file.

| file in `data/` | what it holds |
|---|---|
| `NUMBER.rows` | Arrow: id, path, content hash, captions, the source's own columns … of each picture |
| `NUMBER.embeds` | the L2-normalized embeddings, float32, of the pictures of all `.rows` files in their order |
| `NUMBER.texts` | the same of all their captions |
| `NUMBER.states` | what is kept for the ranker: records of one size, each with its checksum; a row names its record |
| `NUMBER.alive` | a bit for each row, 0 where the picture was removed |
| `NUMBER.part` | of a run under way: what it has encoded, see `store.write_part` |

The manifest is the index: it is replaced in one rename, after everything that it names lies on the disk, so a reader
sees the state before or after a change and never a part of it. `.embeds`, `.texts` and `.states` grow at their end, and
what lies behind the size that the manifest gives does not count. The vector index of FAISS
(`vectors.GENERATION.faiss`) is derived from the embeddings: its row i is row i of the files, removed ones included.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..inference.folders import is_onnx_export
from ..inference.identity import ModelIdentity, canonical
from ..processing.files.writing import write_text
from .remaking import folder_of, remake_command

FORMAT = 3
#: An index of these is recognized, and can be made again in its place.
_EARLIER = (1, 2)
MANIFEST = "manifest.json"
DATA = "data"
REPORT = "unreadable.jsonl"
#: Bytes that have a checksum of their own.
BLOCK = 1 << 24


class IndexFileError(ValueError):
    """An index, or one of its files, is missing, torn, edited, or of another version. Names the file."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the index, or its beginning: size in bytes, and the digest of each block (none: its records have
    checksums)."""

    size: int = 0
    blocks: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """The record of a file as it is now."""
        return cls().extended(path)

    def extended(self, path: Path) -> "FileRecord":
        """The record of a file that has grown: what was added is read, and the block in which that begins.

        Raises:
            IndexFileError: what this block held was changed.
        """
        whole, rest = divmod(self.size, BLOCK)
        blocks = list(self.blocks[:whole])
        with open(path, "rb") as file:
            file.seek(whole * BLOCK)
            if rest and _digest(file.read(rest)) != self.blocks[whole]:
                raise _changed(path)
            file.seek(whole * BLOCK)
            while block := file.read(BLOCK):
                blocks.append(_digest(block))
            return FileRecord(file.tell(), tuple(blocks))

    def check_content(self, path: Path, data: Any) -> None:
        """Raise `IndexFileError` unless this is its content."""
        for number, digest in enumerate(self.blocks):
            if _digest(data[number * BLOCK : min((number + 1) * BLOCK, self.size)]) != digest:
                raise _changed(path)


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _changed(path: Path) -> IndexFileError:
    return IndexFileError(f"{path} was changed after it was written (its checksum differs); index anew")


@dataclass(frozen=True)
class Manifest:
    """The state of an index.

    Attributes:
        dimension: Numbers of an embedding.
        cache: What is kept for the ranker (`CacheOptions` as a dictionary).
        tables: The `.rows` files in order, with their numbers of rows.
        embeds: The `.embeds` file; None where there is nothing to hold.
        texts: The `.texts` file, or None.
        alive: The `.alive` file, or None.
        states: The `.states` files in order; `per_file` records in each. `layout`: the fields of a record, as NumPy
            describes them. `slots`: records taken, those of removed pictures included.
        removed: How many rows are marked as removed.
        vectors: Kind of the vector index; its file, and which rows it holds.
        files: Every file by its name relative to the index.
        generation: Changes so far.
        unreadable: [{"id", "location", "reason", "size", "mtime_ns", "path", "source"}] of what was skipped.
        sources: What the pictures were listed from, as words of a command line.
    """

    model: ModelIdentity
    dimension: int
    cache: dict
    tables: tuple[tuple[str, int], ...] = ()
    embeds: str | None = None
    texts: str | None = None
    alive: str | None = None
    states: tuple[str, ...] = ()
    layout: tuple[tuple, ...] = ()
    per_file: int = 0
    slots: int = 0
    removed: int = 0
    dtype: str = "<f4"
    vectors: dict = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    generation: int = 0
    unreadable: tuple[dict, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the files, those of removed pictures included."""
        return sum(rows for _, rows in self.tables)

    @property
    def images(self) -> int:
        """Pictures in the index."""
        return self.rows - self.removed

    def named(self) -> Iterator[str]:
        """Names of the files that this state needs."""
        yield from (name for name, _ in self.tables)
        yield from self.states
        yield from filter(None, (self.embeds, self.texts, self.alive, self.vectors.get("file")))

    def remake_command(self, root: Path, model: str | None = None) -> str:
        """The command that makes the index again in its place, by default with its own model."""
        tables = (name for name in self.files if name.endswith(".rows"))
        sources = self.sources or tuple(folder_of(root / name) for name in list(tables)[:1])
        return remake_command(root, sources, model or self.model.source, self.cache)

    def refuse_other(self, given: ModelIdentity, root: Path) -> None:
        """Raise unless a model computes what the index's did.

        Raises:
            OtherModelError: says what differs, and the command that makes the index again.
        """
        self.model.refuse_other(given, root, self.remake_command(root, given.source))

    def to_dict(self) -> dict:
        """For JSON, without the checksum."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, root: Path) -> None:
        """Replace the manifest of `root` in one step."""
        body = self.to_dict()
        body["checksum"] = _digest(canonical(body))
        write_text(root / MANIFEST, json.dumps(body, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, root: Path, to_remake: bool = False) -> "Manifest":
        """Read and check the manifest of `root`.

        Args:
            to_remake: Also of an earlier format, of which only what `remake_command` and a rebuild need is known.

        Raises:
            IndexFileError: There is none, it is torn or edited, or of another format.
        """
        path = root / MANIFEST
        if not path.is_file() or is_onnx_export(root):
            raise IndexFileError(_no_index(root))
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(body, dict) and not {"format", "vectors", "checksum"} <= body.keys():
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
        if checksum != _digest(canonical({"format": version, **body})):
            raise _changed(path)
        if version in _EARLIER:
            body = _of_earlier(body)
        else:
            body["files"] = {n: FileRecord(file["size"], tuple(file["blocks"])) for n, file in body["files"].items()}
        lists = {f.name: _tuples(body.pop(f.name, ())) for f in fields(cls) if f.default == ()}
        found = cls(model=ModelIdentity(**body.pop("model")), **lists, **body)
        if version != FORMAT and not to_remake:
            raise IndexFileError(
                f"{root} was made by an earlier release (format {version}; this one reads {FORMAT}): make it anew: "
                f"{found.remake_command(root)}"
            )
        return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _of_earlier(body: dict) -> dict:
    """What a manifest of shards says of its model, sources and files."""
    kept = ("model", "dimension", "cache", "generation", "sources")
    names = [f"shards/{shard['name']}.{kind}" for shard in body["shards"] for kind in (*shard["files"], "json")]
    names += filter(None, [body["vectors"].get("file")])
    return {**{name: body[name] for name in kept if name in body}, "files": {name: FileRecord() for name in names}}


def _no_index(root: Path) -> str:
    if not root.exists():
        return f"no such folder: {root}; an index is made with `r2d2 index`"
    hint = "make one with `r2d2 index PICTURES --model DIR --output INDEX`"
    if (root / ".building.json").is_file():
        hint = "an interrupted run has not finished it: run the same `r2d2 index` again"
    if (root / "config.json").is_file():
        hint = f"it is a model: make an index with `r2d2 index PICTURES --model {root} --output INDEX`"
    return f"{root} holds no index ({MANIFEST} is missing); {hint}"


__all__ = ["BLOCK", "DATA", "FORMAT", "MANIFEST", "REPORT", "FileRecord", "IndexFileError", "Manifest"]

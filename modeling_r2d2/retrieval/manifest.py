"""What an index on disk consists of, which model made it, and checksums of every file.

The manifest is the index: it is replaced in one rename, after everything that it names lies on the disk, so a reader
sees the state before or after a change and never a part of it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..loading import is_onnx_export
from ..processing.datasets.images import turns_upright
from ..processing.files import write_text
from .remaking import folder_of, remake_command

FORMAT = 2
#: An index of these is recognised, and can be made anew in its place.
_EARLIER = (1,)
MANIFEST = "manifest.json"
SHARDS = "shards"
REPORT = "unreadable.jsonl"
_CHUNK = 1 << 22
#: What of a configuration, beside those of the parts, changes the embeddings.
_IDENTIFYING = (
    "projection_dim",
    "vision_pooling",
    "max_text_length",
    "similarity",
    "token_reduction",
    "text_padding",
)
#: What of a part's configuration does not change what it computes.
_INCIDENTAL = {"transformers_version", "dtype", "architectures", "auto_map", "name_or_path"}


class IndexFileError(ValueError):
    """An index, or one of its files, is missing, torn, edited, or of another version. Names the file."""


class OtherModelError(ValueError):
    """The index was made by another model, or with other preprocessing."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model and preprocessing an index belongs to.

    weights: digest of every tensor and of what the configuration says about the networks. preprocessing: digest of
    the image processor's settings and of the tokenizer. source, revision: where the model was loaded from, for people.
    """

    weights: str
    preprocessing: str
    source: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, model: torch.nn.Module, processor: Any) -> "ModelIdentity":
        """The identity of a loaded model and its processor; reads every weight once."""
        digest = hashlib.blake2b(digest_size=16)
        config = {
            name: value
            for name, value in model.config.to_dict().items()
            if name.endswith("_config") or name in _IDENTIFYING
        }
        digest.update(canonical(_without_incidental(config)))
        for name, tensor in sorted(model.state_dict().items()):
            if name.startswith("mlm_head."):  # neither tower nor ranker reads it
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
        pictures = processor.image_processor.to_dict()
        tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
        preprocessing = {
            "image": {k: v for k, v in pictures.items() if not k.startswith("_") and "processor" not in k},
            "exif_transpose": turns_upright(processor),
            # the last call's padding and truncation stay in the tokenizer, and are none of its own
            "tokenizer": {k: v for k, v in tokenizer.items() if k not in ("padding", "truncation")},
            "max_length": processor.tokenizer.model_max_length,
        }
        return cls(
            weights=digest.hexdigest(),
            preprocessing=hashlib.blake2b(canonical(preprocessing), digest_size=16).hexdigest(),
            source=_lasting(getattr(model.config, "_name_or_path", None)),
            revision=getattr(model.config, "_commit_hash", None),
        )

    def refuse_other(self, given: "ModelIdentity", place: Path, remake: str) -> None:
        """Raise unless `given` computes what this one did.

        Args:
            place: of the index. remake: the command that makes it anew with the given model.

        Raises:
            OtherModelError: says what differs, and what to do.
        """
        for what, made, now in (
            ("model", self.weights, given.weights),
            ("preprocessing (image processor or tokenizer)", self.preprocessing, given.preprocessing),
        ):
            if made != now:
                before = "" if what == "model" else ", or before photographs were turned upright"
                raise OtherModelError(
                    f"{place} was made with another {what}{before}: by {self.source or 'a model without a name'} "
                    f"({made[:12]}), and {given.source or 'the model given'} is {now[:12]}. Vectors of two models "
                    "cannot be compared: open the index with its own model (and dtype), or make it anew with this one: "
                    f"{remake}"
                )

    def place(self, index: Path) -> str:
        """Where the model is: a folder, or a name of the Hub.

        Raises:
            ValueError: it was loaded from nowhere, or its folder is no longer there.
        """
        if self.source is None:
            raise ValueError(f"{index} does not say where its model is: give it with --model DIR (model=)")
        if self.is_gone:
            raise ValueError(
                f"{index}: its model was in {self.source}, and there is no such folder any more: give the place where "
                "it is now with --model DIR (model=); the index remembers it"
            )
        return self.source

    @property
    def is_gone(self) -> bool:
        """Whether the model was in a folder that is no longer there."""
        return self.source is not None and os.path.isabs(self.source) and not os.path.isdir(self.source)


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


def _lasting(source: str | None) -> str | None:
    """A folder by its full path, so that the index finds its model from anywhere; other names as they are."""
    return os.path.abspath(source) if source and os.path.isdir(source) else source or None


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, of any dtype."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def digest_of_file(path: Path) -> str:
    """blake2b of a file, read piece by piece."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _without_incidental(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _without_incidental(each)
            for name, each in value.items()
            if name not in _INCIDENTAL and not str(name).startswith("_")
        }
    return value

"""What a folder of ONNX graphs consists of, what it was made from, and how far it is from there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..processing.files.digests import digest_of_file

FORMAT = 1
MANIFEST = "manifest.json"
#: The graphs of a model, by name.
IMAGE_TOWER, TEXT_TOWER, RANKER = "image_tower", "text_tower", "ranker"


class OnnxFolderError(ValueError):
    """A folder of ONNX graphs, or one of its files, is missing, torn, edited, or of another version. Names the file."""


@dataclass(frozen=True)
class GraphRecord:
    """A graph and how far it is from torch in float32.

    Args:
        file: its name.
        made: precision within.
        bytes: its size.
        digest: its blake2b.
        deviation: for each output the largest difference, on random inputs and on the pictures that were given, in
            units of max(1, largest value).
        cosine: the smallest between the embeddings of the graph and of torch, None for the ranker.
    """

    file: str
    made: str
    bytes: int
    digest: str
    deviation: dict[str, float]
    cosine: float | None = None


@dataclass(frozen=True)
class OnnxManifest:
    """The content of manifest.json.

    Args:
        precision: as asked for.
        source: name of the model folder.
        source_weights: digest of its weights, as an index of pictures records it.
        source_preprocessing: digest of its processor.
        temperature: of pre-ranking.
        image_size: (height, width) that the image tower takes.
        max_length: most tokens of a text.
        ranker_weights: see `ranker_weights.locate`.
        versions: of the libraries that made it.
    """

    precision: str
    source: str | None
    source_weights: str
    source_preprocessing: str
    temperature: float
    image_size: tuple[int, int]
    max_length: int
    opset: int
    graphs: dict[str, GraphRecord]
    ranker_weights: dict[str, tuple[str, bool]]
    versions: dict[str, str]

    def save(self, folder: Path) -> None:
        """Write it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "OnnxManifest":
        """Read the manifest of a folder.

        Raises:
            OnnxFolderError: there is none, it is torn, or of another format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise OnnxFolderError(
                f"{folder} holds no ONNX graphs ({MANIFEST} is missing): make them with "
                f"`r2d2 export MODEL_DIR --output {folder}`"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise OnnxFolderError(f"{path} is torn or of something else ({error}): export the model anew") from error
        if version != FORMAT:
            raise OnnxFolderError(
                f"{path}: format {version}, this release reads format {FORMAT}: export the model anew"
            )
        try:
            values["graphs"] = {name: GraphRecord(**record) for name, record in values["graphs"].items()}
            values["image_size"] = tuple(values["image_size"])
            values["ranker_weights"] = {name: tuple(place) for name, place in values["ranker_weights"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise OnnxFolderError(f"{path} lacks or has too many entries ({error}): export the model anew") from error

    def check(self, folder: Path, content: bool = True) -> None:
        """Compare the graphs' files with what was written.

        Raises:
            OnnxFolderError: one is missing, torn, or (with `content`) changed.
        """
        for record in self.graphs.values():
            path = folder / record.file
            if not path.is_file():
                raise OnnxFolderError(f"{path} is missing: export the model anew, or restore the file")
            if path.stat().st_size != record.bytes:
                raise OnnxFolderError(f"{path} is torn: {path.stat().st_size} bytes instead of {record.bytes}")
            if content and digest_of_file(path) != record.digest:
                raise OnnxFolderError(f"{path} was changed after it was written (its checksum differs)")


__all__ = ["MANIFEST", "GraphRecord", "OnnxFolderError", "OnnxManifest"]

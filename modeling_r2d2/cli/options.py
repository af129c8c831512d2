"""Options that several verbs share, as dataclasses that a verb's own settings inherit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..model.ranges_r2d2 import COUNT, SHARE
from ..processing.files.settings import require_settings, setting


@dataclass(kw_only=True)
class Checked:
    """Settings whose ranges and choices are checked when they are made.

    Raises:
        ValueError: names the setting that is wrong.
    """

    def __post_init__(self) -> None:
        require_settings(self)


@dataclass(kw_only=True)
class Trusting(Checked):
    """Of every verb that loads a model: within the verb, `modeling_r2d2.inference.loading` trusts what it loads."""

    panel: ClassVar[str] = "Safety"
    trust_remote_code: bool = setting(
        False, "Run code that a model, tokenizer or processor brings in its folder. Without it none runs."
    )


@dataclass(kw_only=True)
class ReadingImages(Checked):
    """Of every verb that reads pictures."""

    panel: ClassVar[str] = "Safety"
    max_pixels: int | None = setting(
        None,
        "Read pictures of up to so many pixels, width x height. The default is 134 million.",
        bounds=COUNT,
    )


@dataclass(kw_only=True)
class Computing(Trusting):
    """Of verbs that compute with a model."""

    panel: ClassVar[str] = "Model"
    device: str | None = setting(None, "Where to compute: cpu, cuda, mps. The default is the fastest that is there.")


@dataclass(kw_only=True)
class Tables(Checked):
    """How lists and tables of pictures are read."""

    panel: ClassVar[str] = "Data"
    format: str | None = setting(
        None, "The format of the data, where the suffix does not tell: icm, flickr30k-cna, chinese-clip, coco-cn, …"
    )
    image_root: Path | None = setting(None, "The folder in which relative picture paths begin.")
    image_column: str | None = setting(
        None, "The column (or key) of the pictures. The default is image, file_name, 图片, … as found."
    )
    text_column: str | None = setting(
        None, "The column (or key) of the texts. The default is text, caption, 标题, … as found."
    )
    encoding: str | None = setting(
        None, "The encoding of text files: gb18030, big5, … The default is UTF-8, UTF-16 or GB18030, as found."
    )

    def reading(self) -> dict[str, Any]:
        """What `load_pairs` takes of these options."""
        columns = {field: getattr(self, f"{field}_column", None) for field in ("image", "text", "group")}
        columns["label"] = getattr(self, "label", None)
        names = ("format", "split", "image_root", "encoding", "on_error", "max_error_rate", "background")
        return {
            **{name: getattr(self, name) for name in names if hasattr(self, name)},
            "columns": {field: name for field, name in columns.items() if name is not None} or None,
        }


@dataclass(kw_only=True)
class Pairs(Tables):
    """How pairs are read."""

    panel: ClassVar[str] = "Data"
    split: str | None = setting(None, "Which split of a published set or of a folder is read.")


@dataclass(kw_only=True)
class TrainingPairs(Pairs):
    """How pairs are read that a run trains on."""

    panel: ClassVar[str] = "Data"
    on_error: Literal["skip", "refuse"] = setting(
        "skip", "Bad records: 'skip' leaves them out and reports them, 'refuse' ends the run."
    )
    max_error_rate: float = setting(0.01, "Data of which a larger share is bad are refused.", bounds=SHARE)
    background: str | None = setting(None, "The color that transparent pictures are put on.")
    group_column: str | None = setting(
        None,
        "The column that names groups of pairs, all of one size and each in successive lines, which are kept in one "
        "batch as hard negatives of each other.",
    )


__all__ = ["Checked", "Computing", "Pairs", "ReadingImages", "Tables", "TrainingPairs", "Trusting"]

"""What a run says of its data and of where it began: written by `r2d2 pretrain`, `finetune` and `demo`, read by cards.

It is `pretraining.json` in the run's folder, and the key "record" of a fine-tuning's `finetuning.json`. Names are the
last part of what the user gave, so that a published folder tells nothing of the machine's paths.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainerCallback

from ..processing.datasets import PairDataset
from ..processing.datasets.emoji import DemoPairs
from ..processing.datasets.named import named_set
from ..processing.files.writing import remove_owned, staged_folder

RECORD_FILE = "pretraining.json"
FINETUNING_FILE = "finetuning.json"
#: What a run leaves of itself, and keys by which it is known for ours.
_RECOGNISED = {
    RECORD_FILE: {"data", "start", "objectives"},
    FINETUNING_FILE: {"report", "settings"},
    "results.json": {"vendors", "training_seconds"},
}


@dataclass
class TrainingData:
    """Pairs that a run has read.

    Args:
        name: file or folder, without its parents.
        pairs: their number; None of a stream, which has `shards` instead.
        images: different ones.
        texts: their number.
        bad_records: left out, as far as the run has met them.
        license: where the program knows it.
    """

    name: str
    pairs: int | None = None
    images: int | None = None
    texts: int | None = None
    shards: int | None = None
    bad_records: int = 0
    license: str | None = None

    @classmethod
    def of(cls, source: str, pairs: Any, split: str | None = None) -> TrainingData:
        """The counts of what `load_pairs` made of a source, or of a split of it."""
        path = Path(source)
        # a pattern alone says nothing: shards/{000..127}.tar
        name = f"{path.parent.name}/{path.name}" if set("*?[{") & set(path.name) and path.parent.name else path.name
        name = (named_set(source) or name or path.resolve().name) + ("" if split is None else f" ({split})")
        found = cls(name, bad_records=pairs.report.errors, license=getattr(pairs, "terms", None))
        if isinstance(pairs, PairDataset):
            import pyarrow.compute as pc

            # within Arrow: lists of millions of strings would be made to be counted
            found.pairs, found.images = len(pairs), pc.count_distinct(pairs.table["image_id"]).as_py()
            found.texts = pc.sum(pc.list_value_length(pairs.table["texts"])).as_py()
        elif isinstance(pairs, DemoPairs):  # every drawing is a picture of its own
            found.pairs, found.images, found.texts = len(pairs), len(pairs), len(pairs.all_texts())
        else:
            found.shards = pairs.num_shards
        return found

    def counted(self) -> str:
        """Its size in words."""
        if self.pairs is None:
            size = f"a stream of {self.shards:,} shards"
        else:
            size = f"{self.pairs:,} pairs, {self.images:,} pictures, {self.texts:,} texts"
        return f"{size}; {self.bad_records:,} bad records left out" if self.bad_records else size


@dataclass
class RunRecord:
    """Data and start of a run.

    Args:
        data: what was trained on.
        start: how it began, "model", "preset" or "config", or "clip" and "roberta" -> the name.
        hub: which of these names are repositories of the Hub.
        objectives: of the recipe.
        published: "teacher" where the towers are the teacher's moving average.
    """

    data: list[TrainingData]
    start: dict[str, str]
    hub: list[str] = field(default_factory=list)
    objectives: str | None = None
    published: str | None = None

    def write(self, folder: str | PathLike) -> None:
        """Into the folder, which is made."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        with staged_folder(folder, "train") as partial:
            (partial / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | PathLike) -> RunRecord | None:
        """The record of a folder; None where there is none.

        Raises:
            ValueError: the file is torn or of another kind; names it.
        """
        return cls._read(Path(folder) / RECORD_FILE, "pretrain", lambda held: held)

    @classmethod
    def of_finetuning(cls, folder: str | PathLike) -> RunRecord | None:
        """The record within finetuning.json; None where there is none.

        Raises:
            ValueError: the file is torn or of another kind; names it.
        """
        return cls._read(Path(folder) / FINETUNING_FILE, "finetune", lambda held: held.get("record"))

    @classmethod
    def _read(cls, path: Path, command: str, record_in: Callable[[Any], dict | None]) -> RunRecord | None:
        if not path.is_file():
            return None
        try:
            held = record_in(json.loads(path.read_text(encoding="utf-8")))
            return None if held is None else cls.from_dict(held)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no record of `r2d2 {command}`: {error}; delete it to go without") from error

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> RunRecord:
        """From what `asdict` has made."""
        return cls(**{**held, "data": [TrainingData(**each) for each in held["data"]]})

    def after(self, earlier: RunRecord | None) -> RunRecord:
        """Of a resumed run: it began as the earlier one did."""
        if earlier is None:
            return self
        return RunRecord(self.data, earlier.start, earlier.hub, self.objectives, self.published)


def remove_records(folder: str | PathLike) -> None:
    """Delete what the run before has left of itself: nothing there may describe the model that replaces its own.

    These are the records, the trainer's arguments and state, and the demo's results, where the folder's stamp names
    them or (of a folder without one) they hold what this package writes; what anybody else has written stays, and so
    does the card.
    """
    remove_owned(folder, [*_RECOGNISED, "training_args.bin", "trainer_state.json"])
    for name, keys in _RECOGNISED.items():
        path = Path(folder) / name
        try:
            held = None if path.is_symlink() else json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(held, dict) and keys <= held.keys():
            path.unlink()


def is_hub_name(name: Any) -> bool:
    """`owner/name` or a bare name, in the letters that the Hub allows."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def describe_start(start: Any) -> tuple[dict[str, str], list[str]]:
    """`start` and `hub` of a record, from a `training.start.StartingPoint`."""
    names: dict[str, str] = {}
    hub: list[str] = []
    for way in ("model", "preset", "config", "clip", "roberta"):
        value = getattr(start, way)
        if value is None:
            continue
        text = value.as_posix() if isinstance(value, Path) else value
        if way in ("model", "clip", "roberta") and not Path(text).exists() and "/" in text and is_hub_name(text):
            hub.append(text)
            names[way] = text
        else:
            names[way] = text if way == "preset" else Path(text).resolve().name
    return names, hub


class RecordCallback(TrainerCallback):
    """Writes the record into the run's folder when training begins, and once more when it ends.

    Args:
        record: of this run.
        pairs: whose bad records are counted at the end.
        resume: add to the record that is there.
    """

    def __init__(self, record: RunRecord, pairs: Any, resume: bool = False) -> None:
        self.record, self.pairs, self.resume = record, pairs, resume

    def on_train_begin(self, args, state, control, **kwargs):
        """Write what is known before the first step."""
        if not state.is_world_process_zero:
            return
        if self.resume:
            self.record = self.record.after(RunRecord.read(args.output_dir))
        self.record.write(args.output_dir)

    def on_train_end(self, args, state, control, **kwargs):
        """Add the records that turned out bad while training."""
        if state.is_world_process_zero:
            self.record.data[-1].bad_records = self.pairs.report.errors
            self.record.write(args.output_dir)


__all__ = [
    "FINETUNING_FILE",
    "RECORD_FILE",
    "RecordCallback",
    "RunRecord",
    "TrainingData",
    "describe_start",
    "remove_records",
]

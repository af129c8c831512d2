"""What a pre-training run says of itself: `pretraining.json` in its folder, written by `r2d2 pretrain`, read by cards.

Names are the last part of what the user gave, so that a published folder tells nothing of the machine's paths.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .licences import is_hub_name

RECORD_FILE = "pretraining.json"


@dataclass
class TrainingData:
    """Pairs that a run has read.

    name: file or folder, without its parents. pairs, pictures (different ones), texts: counted; None of a stream, which
    has `shards` instead. bad_records: left out, as far as the run has met them.
    """

    name: str
    pairs: int | None = None
    pictures: int | None = None
    texts: int | None = None
    shards: int | None = None
    bad_records: int = 0

    @classmethod
    def of(cls, source: str, pairs: Any) -> TrainingData:
        """The counts of what `load_pairs` made of a source."""
        path = Path(source)
        # a pattern alone says nothing: shards/{000..127}.tar
        name = f"{path.parent.name}/{path.name}" if set("*?[{") & set(path.name) and path.parent.name else path.name
        found = cls(name or path.resolve().name, bad_records=pairs.report.errors)
        if hasattr(pairs, "__len__"):
            import pyarrow.compute as pc

            # within Arrow: lists of millions of strings would be made to be counted
            found.pairs, found.pictures = len(pairs), pc.count_distinct(pairs.table["image_id"]).as_py()
            found.texts = pc.sum(pc.list_value_length(pairs.table["texts"])).as_py()
        else:
            found.shards = pairs.num_shards
        return found

    def counted(self) -> str:
        """Its size in words."""
        if self.pairs is None:
            size = f"a stream of {self.shards:,} shards"
        else:
            size = f"{self.pairs:,} pairs, {self.pictures:,} pictures, {self.texts:,} texts"
        return f"{size}; {self.bad_records:,} bad records left out" if self.bad_records else size


@dataclass
class RunRecord:
    """The content of pretraining.json.

    data: what was trained on; several where a run was resumed with other data. start: how it began, "model", "preset"
    or "config", or "clip" and "roberta" -> the name. hub: which of these names are repositories of the Hub. objectives:
    of the recipe.
    """

    data: list[TrainingData]
    start: dict[str, str]
    hub: list[str] = field(default_factory=list)
    objectives: str | None = None

    def write(self, folder: str | PathLike) -> None:
        """Into the folder, which is made."""
        path = Path(folder) / RECORD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | PathLike) -> RunRecord | None:
        """The record of a folder; None where there is none.

        Raises:
            ValueError: the file is torn or of another kind; names it.
        """
        path = Path(folder) / RECORD_FILE
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**held, "data": [TrainingData(**each) for each in held["data"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no record of `r2d2 pretrain`: {error}; delete it to go without") from error


def describe_start(start: Any) -> tuple[dict[str, str], list[str]]:
    """`start` and `hub` of a record, from a `training.start.StartingPoint`."""
    names, hub = {}, []
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
        record: of this run. pairs: whose bad records are counted at the end. resume: add to the record that is there.
    """

    def __init__(self, record: RunRecord, pairs: Any, resume: bool = False) -> None:
        self.record, self.pairs, self.resume = record, pairs, resume

    def on_train_begin(self, args, state, control, **kwargs):
        """Write what is known before the first step."""
        if not state.is_world_process_zero:
            return
        if self.resume and (earlier := RunRecord.read(args.output_dir)) is not None:
            own = self.record.data[-1]
            others = [each for each in earlier.data if each.name != own.name or each.pairs != own.pairs]
            self.record = RunRecord([*others, own], earlier.start, earlier.hub, self.record.objectives)
        self.record.write(args.output_dir)

    def on_train_end(self, args, state, control, **kwargs):
        """Add the records that turned out bad while training."""
        if state.is_world_process_zero:
            self.record.data[-1].bad_records = self.pairs.report.errors
            self.record.write(args.output_dir)


__all__ = ["RECORD_FILE", "RecordCallback", "RunRecord", "TrainingData", "describe_start"]

"""Pairs read as a stream, shard by shard: for sets too large to list, and for WebDataset shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch.utils.data import IterableDataset

from ..files.images import ImageReadError, open_image
from .places import located
from .records import LABEL, PLAIN, RawPair, Reading, image_folder, image_id_of
from .report import ErrorReport, Note, Problem
from .tables import require_datasets

logger = logging.getLogger(__name__)
MIN_SEEN = 100
Reader = Callable[[str, Reading], Iterator[RawPair | Problem]]


class StreamingPairs(IterableDataset):
    """An iterable of `{"image": PIL.Image (RGB), "text": str | list[str], "image_id": str, "location": str}`.

    The shards are an iterable data set of the `datasets` library, which gives each data loader worker its own
    shards, shuffles them with a buffer, splits them over processes and remembers its position.

    A bad record is counted and skipped or refused as in `ErrorReport`; the share of bad ones is judged over what
    this process has seen, from 100 records on and at the end.

    Args:
        shards: file names, or addresses for WebDataset shards.
        reader: yields the records of one shard.
        reading: columns, encoding, and where relative paths begin; default the shard's own folder.
        background: as in `open_image`.
        labelled: whether the reader gives every pair a label; default: whether `reading` names a column of labels.

    Raises:
        ValueError: a column of groups was asked for.

    Attributes:
        report: what was bad so far.
        labelled: whether every pair has a label.
        exif_transpose: as in `PairDataset`.
    """

    def __init__(
        self,
        shards: Sequence[str],
        reader: Reader,
        *,
        reading: Reading = PLAIN,
        background: str | tuple[int, int, int] | None = None,
        report: ErrorReport | None = None,
        labelled: bool = False,
    ) -> None:
        super().__init__()
        if reading.grouped:
            raise ValueError(
                "groups of pairs are kept together in sets with a length: read without streaming or shards"
            )
        self.report = report or ErrorReport()
        self.background = background
        self.exif_transpose = True
        self.labelled = labelled or (isinstance(reading.columns, Mapping) and LABEL in reading.columns)
        self.stream = require_datasets().IterableDataset.from_generator(
            _generate,
            gen_kwargs={
                "shards": list(shards),
                "reader": reader,
                "reading": reading,
                "apart": len({image_folder(shard) for shard in shards}) > 1,
            },
        )
        self._warned: set[str] = set()
        self._shuffled = False
        self._epoch = 0
        self._rows = 0  # records taken from the stream in this pass, bad ones too
        self._skip = 0

    @property
    def num_shards(self) -> int:
        """Shards of this stream: at most so many data loader workers have something to read."""
        return self.stream.num_shards

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skip, self._skip = self._skip, 0
        self._rows = 0
        try:
            yield from self._samples(skip)
        finally:
            self.stream.load_state_dict(None)  # the next pass begins at the beginning
        self.report.check()

    def _samples(self, skip: int) -> Iterator[dict[str, Any]]:
        for row in self.stream:
            self._rows += 1
            if self._rows <= skip:
                continue
            if (problem := row["problem"]) is not None:
                self.report.count(problem.lines)
                self._refuse_or_skip(problem)
                continue
            self.report.count()
            source, line = row["source"], row["line"]
            if row["empty_texts"]:
                self._refuse_or_skip(Problem(source, line, f"{row['empty_texts']} empty captions beside good ones"))
            location = source if line is None else f"{source}:{line}"
            try:
                image = open_image(
                    row["image"], background=self.background, name=location, exif_transpose=self.exif_transpose
                )
            except ImageReadError as error:
                self._refuse_or_skip(Problem(source, line, str(error).removeprefix(f"{location}: ")))
                continue
            texts = row["texts"]
            yield {
                "image": image,
                "text": texts[0] if len(texts) == 1 else list(texts),
                "image_id": row["image_id"],
                "location": location,
                **({} if row["label"] is None else {"label": row["label"]}),
            }

    def _refuse_or_skip(self, problem: Problem) -> None:
        self.report.add(problem)
        if isinstance(problem, Note):
            # once for all shards; the report has the sums
            if not self.report.quiet and problem.reason not in self._warned:
                self._warned.add(problem.reason)
                logger.warning("%s: %s", problem.source, problem.message)
            return
        if self.report.on_error == "refuse" or self.report.seen >= MIN_SEEN:
            self.report.check()

    # -- what the `datasets` library offers -----------------------------------------------------

    def shuffle(self, seed: int = 0, buffer_size: int = 1000) -> StreamingPairs:
        """The same stream with shards shuffled and samples drawn from a buffer; anew in every epoch."""
        other = self._with(self.stream.shuffle(seed=seed, buffer_size=buffer_size))
        other._shuffled = True
        return other

    def shard_over_processes(self, rank: int, world_size: int) -> StreamingPairs:
        """The part of one of `world_size` processes."""
        from datasets.distributed import split_dataset_by_node

        return self._with(split_dataset_by_node(self.stream, rank=rank, world_size=world_size))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew for this pass over the data; the same epoch gives the same order."""
        self._epoch = epoch
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict:
        """Where the stream stands, for JSON: a stream made anew goes on at the very next sample.

        Without `shuffle` the shards before that sample are not read again. With it they are, from the epoch's
        beginning but without decoding a picture, since the buffer's content is no part of the state. The state is
        that of the process that iterates: a data loader's workers each have their own.
        """
        # the library resumes only in the epoch that the state names, and orders the shards anew in every epoch
        state = {"shuffled": self._shuffled, "epoch": self._epoch}
        return {**state, "rows": self._rows} if self._shuffled else {**state, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken, with the same shards and the same `shuffle`.

        Raises:
            ValueError: the state is of a shuffled stream and this one is not, or the other way round.
        """
        if state["shuffled"] != self._shuffled:
            kinds = [
                "a shuffled stream" if shuffled else "one in order" for shuffled in (state["shuffled"], self._shuffled)
            ]
            raise ValueError(
                f"the state is of {kinds[0]}, this is {kinds[1]}: call shuffle() with the same seed, or not"
            )
        self.set_epoch(state["epoch"])
        if self._shuffled:
            self._skip = state["rows"]
        else:
            self.stream.load_state_dict(state["stream"])

    def _with(self, stream: Any) -> StreamingPairs:
        other = object.__new__(StreamingPairs)
        other.__dict__.update(self.__dict__)
        other.stream = stream
        return other


_COLUMNS = ("source", "line", "problem", "image", "texts", "image_id", "empty_texts", "label")


def _generate(shards: list[str], reader: Reader, reading: Reading, apart: bool) -> Iterator[dict]:
    for shard in shards:
        folder = image_folder(shard)
        root = folder if reading.image_root is None else reading.image_root
        for item in reader(shard, reading):
            item = item if isinstance(item, Problem) else located(item, root)
            row: dict[str, Any] = {**dict.fromkeys(_COLUMNS), "source": item.source, "line": item.line}
            if isinstance(item, Problem):
                yield {**row, "problem": item}
                continue
            if isinstance(item.image, bytes):  # an archive holds its pictures wherever `image_root` is
                row |= {"image": item.image, "image_id": image_id_of(item, folder, apart)}
            else:
                image_id = image_id_of(item, root, apart and reading.image_root is None)
                row |= {"image": str(root / cast(str, item.image)), "image_id": image_id}
            yield {**row, "texts": list(item.texts), "empty_texts": item.empty_texts, "label": item.label}

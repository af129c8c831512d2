"""`r2d2 index`: make an index of pictures, add to it, take from it."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..model.ranges_r2d2 import COUNT
from ..processing.files.progress import bar
from ..processing.files.settings import setting
from .options import Computing, ReadingImages, Tables
from .terminal import Terminal


@dataclass(kw_only=True)
class IndexSettings(Tables, ReadingImages, Computing):
    """What `r2d2 index` takes."""

    images: list[str] = setting(
        [], "Folders, JSONL, CSV/TSV, Parquet, saved data sets or tar shards; one or several.", argument=True
    )
    output: Path = setting(help="The folder of the index. It is added to if it is there.")
    model: str | None = setting(None, "The folder or name of the model. The default is the model of the index.")
    keep: Literal["none", "states", "keys_values"] | None = setting(
        None, "What is kept for the ranker. The default is what the index keeps, of a new one nothing."
    )
    precision: Literal["float16", "int8", "float32"] | None = setting(
        None, "Of what is kept. The default is that of the index, of a new one float16."
    )
    vectors: Literal["flat", "hnsw", "ivf"] | None = setting(
        None, "How vectors are searched. The default is chosen by their number."
    )
    batch_size: int = setting(32, "Pictures that are encoded at once.", bounds=COUNT)
    prune: bool = setting(False, "Remove pictures that the source no longer has, and those whose files are gone.")
    rebuild: bool = setting(False, "Make the index from nothing, whatever model it had. It can be searched meanwhile.")
    remove: list[str] = setting([], "Remove the picture of this id. It can be repeated.")


def index(settings: IndexSettings) -> None:
    """Index pictures for `r2d2 search`. An interrupted run goes on where it was when it is called again."""
    from ..inference.models import load_model
    from ..processing.datasets.report import ErrorReport
    from ..search.building import IndexBuilder
    from ..search.cache import CacheOptions
    from ..search.manifest import MANIFEST, Manifest

    if not settings.images and not settings.remove:
        raise ValueError("name the pictures to index, or --remove ID")
    console = Terminal()
    there = (settings.output / MANIFEST).is_file() or not settings.images
    before = Manifest.load(settings.output, to_remake=settings.rebuild) if there else None
    model = settings.model or (before.model.place(settings.output) if before is not None else None)
    if model is None:
        raise ValueError("name the model that makes the index: --model DIR")
    kept = CacheOptions(**before.cache) if before is not None else CacheOptions()
    kept = CacheOptions(settings.keep or kept.keep, settings.precision or kept.precision)
    network, processor = load_model(model, device=settings.device)
    accelerator = _accelerator()
    reading = settings.reading()
    images = settings.images
    source = None if not images else images if len(images) > 1 else images[0]
    with IndexProgress() as progress:
        builder = IndexBuilder(
            network,
            processor,
            settings.output,
            kept,
            settings.vectors,
            settings.batch_size,
            accelerator=accelerator,
            progress=progress,
        )
        removed, noted = 0, ErrorReport()
        if settings.remove:
            outcome = builder.remove(settings.remove)
            removed = outcome.removed
        if settings.images:
            outcome = builder.add(source, settings.prune, settings.rebuild, note=noted.add, **reading)
            outcome = replace(outcome, removed=outcome.removed + removed)
    if accelerator is not None and not accelerator.is_main_process:
        return
    parts = [f"{number:,} {what}" for what in ("added", "changed", "removed") if (number := getattr(outcome, what))]
    moved = f", {outcome.moved:,} of them in a new place" if outcome.moved else ""
    parts += [f"{outcome.unchanged:,} unchanged{moved}"] if outcome.unchanged else []
    console.print(f"{settings.output}: {outcome.images:,} pictures ({', '.join(parts) or 'nothing to do'})")
    if outcome.resumed:
        console.print(f"{outcome.resumed:,} of them were taken over from an interrupted run")
    if outcome.duplicates:
        console.print(f"pictures with the same content as another: {outcome.duplicates:,}")
    for note in noted.notes:
        console.print(note)
    if outcome.not_pruned:
        console.print(f"nothing was removed: {outcome.not_pruned}", style="yellow")
    if outcome.gone:
        examples = ", ".join(outcome.gone[:3]) + (", …" if len(outcome.gone) > 3 else "")
        console.print(
            f"{len(outcome.gone):,} are no longer where they were, such as {examples}: index them from where they are "
            "now, or remove them with --prune",
            style="yellow",
        )
    if outcome.unreadable:
        console.print(f"{len(outcome.unreadable):,} could not be read and were skipped:", style="yellow")
        for entry in outcome.unreadable[:20]:
            line = f"  {entry['location']}: {entry['reason']}"
            console.print(line)
        more = len(outcome.unreadable) - 20
        rest = f"… and {more:,} more; " if more > 0 else ""
        console.print(f"  {rest}all in {settings.output / 'unreadable.jsonl'}")


class IndexProgress:
    """A bar of the pictures that are done, given the number of all as soon as it is planned.

    Called as `IndexBuilder` calls: with how many were done since the last call, and with what was done to them.
    """

    def __enter__(self) -> "IndexProgress":
        self._bar, self._done = bar(doing="indexing", unit="pictures"), Counter[str]()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, count: int, doing: str) -> None:
        if doing == "planned":
            self._bar.total = count + self._done.total()
        elif count == 0:  # a step that has no pictures of its own
            self._bar.set_description(doing, refresh=False)
        else:
            self._done[doing] += count
            shown = {name: number for name, number in self._done.items() if name != "encoding"}
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(count)


def _accelerator():
    """Under `accelerate launch` or torchrun with several processes, each encodes its share of the pictures."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator()

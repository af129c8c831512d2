"""Loading a published data set by its name: `load_pairs(folder, format="flickr30k-cna", split="test")`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .chinese_clip import Base64Images, images_of, read_chinese_clip
from .formats import BenchmarkFormat, Records, find_sources, image_root_of, in_folders
from .img2dataset import not_fetched
from .pairs import CheckImages, PairDataset, collect, finish
from .records import RawPair, Reading, image_id_of
from .report import ErrorReport
from .streaming import StreamingPairs


def load_published(
    spec: BenchmarkFormat,
    paths: list[str],
    split: str | None,
    report: ErrorReport,
    check_images: CheckImages,
    streaming: bool,
    *,
    reading: Reading,
    background: str | tuple[int, int, int] | None = None,
) -> PairDataset | StreamingPairs:
    """What `load_pairs` does for the formats of `BENCHMARKS`; see there.

    Raises:
        FileNotFoundError, ValueError, DataRefusedError: as `load_pairs`.
    """
    sources = find_sources(spec, paths, split)
    if spec.name in ("wukong", "zero"):
        for folder in dict.fromkeys(s.path if s.path.is_dir() else s.path.parent for s in sources):
            if note := not_fetched(folder):
                report.note(f"{folder}: {note}")
    if spec.name == "chinese-clip":
        if streaming:
            raise ValueError(
                "the Chinese-CLIP format is read where it lies, picture by picture: load without streaming"
            )
        if len(sources) != 1:
            raise ValueError(f"{len(sources)} files of texts: the Chinese-CLIP format is read one split at a time")
        return _chinese_clip(sources[0].path, reading, report, check_images, background)
    if streaming or any(source.streamed for source in sources):
        if len({source.streamed for source in sources}) > 1:
            raise ValueError("tar shards and other files cannot be read as one stream: read them one by one")
        reader = sources[0].read
        if not sources[0].streamed:
            reader = partial(_located, spec, reader)
        names = [source.name for source in sources]
        return StreamingPairs(
            names,
            reader,
            reading=reading,
            background=background,
            report=report,
            labelled=spec.task == "matching",
        )

    roots = [_root(spec, source.path, reading) for source in sources]

    def records() -> Iterator[tuple[Path, Any]]:
        for source, root in zip(sources, roots, strict=True):
            for item in in_folders(spec, root, source.read(source.name, reading)):
                yield root, item

    table = collect(records(), report, check_images, apart=len(set(roots)) > 1)
    return finish(PairDataset(table, report, background=background), sources[0].name, reading)


def _root(spec: BenchmarkFormat, file: Path, reading: Reading) -> Path:
    return image_root_of(spec, file) if reading.image_root is None else reading.image_root


def _located(spec: BenchmarkFormat, read: Any, path: str, reading: Reading) -> Records:
    """Records of one file of a stream, with the whole path of each picture."""
    root = _root(spec, Path(path), reading)
    for item in in_folders(spec, root, read(path, reading)):
        if isinstance(item, RawPair):
            item = replace(item, image=str(root / str(item.image)), image_id=image_id_of(item, root, apart=False))
        yield item


def _chinese_clip(
    texts: Path, reading: Reading, report: ErrorReport, check_images: CheckImages, background: Any
) -> PairDataset:
    images = Base64Images(images_of(texts))
    records = read_chinese_clip(texts, images, check_images, reading.encoding)
    table = collect(((texts.parent, item) for item in records), report, "none")
    counts = table.column("texts").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    paired = table.take(np.flatnonzero(counts > 0))
    pairs = PairDataset(paired, report, images=images, background=background)
    if paired.num_rows < table.num_rows:
        rest = table.take(np.flatnonzero(counts == 0))
        pairs.unpaired = PairDataset(rest, report, images=images, background=background)
    return finish(pairs, str(texts), reading)

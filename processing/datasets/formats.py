"""The published data sets by name: where their files lie, and which reader takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..files.images import IMAGE_SUFFIXES
from .caption_sets import (
    read_aic_icc,
    read_coco_cn,
    read_flickr30k_cna,
    read_matching_lines,
    read_members,
    read_retrieval_lines,
)
from .img2dataset import read_wukong_shard, read_zero_shard, refuse_addresses, shards_of
from .listing import data_files, in_junk
from .records import RawPair, Reading
from .report import Problem
from .zero import read_zero

Records = Iterator[RawPair | Problem]


@dataclass(frozen=True)
class BenchmarkFormat:
    """A published data set.

    Args:
        title: as its authors write it.
        files: where a split's file lies within the set's folder, `{split}` standing for the split's name.
        read: records of one file.
        image_folders: sub-folders that may hold the pictures.
        task: what the set is a benchmark of.
        candidates: k of the second stage in the authors' evaluation.
    """

    name: str
    title: str
    files: tuple[str, ...]
    read: Callable[[Path, Reading], Records]
    image_folders: tuple[str, ...] = ("images",)
    task: str = "retrieval"
    candidates: int = 128


def _short_and_long(name: str, kind: str, task: str, read: Callable) -> BenchmarkFormat:
    file = f"{kind}_{{split}}.json"
    places = (f"{{split}}/{file}", file, f"{name.upper()}/{{split}}/{file}")
    return BenchmarkFormat(name, name.upper(), places, read, task=task, candidates=64)


BENCHMARKS: dict[str, BenchmarkFormat] = {
    spec.name: spec
    for spec in (
        _short_and_long("icm", "long_itm", "matching", read_matching_lines),
        _short_and_long("iqm", "short_itm", "matching", read_matching_lines),
        _short_and_long("icr", "long_itr", "retrieval", read_retrieval_lines),
        _short_and_long("iqr", "short_itr", "retrieval", read_retrieval_lines),
        BenchmarkFormat(
            "flickr30k-cna",
            "Flickr30k-CNA",
            ("{split}/flickr30k_cna_{split}.txt", "flickr30k_cna_{split}.txt"),
            read_flickr30k_cna,
            ("flickr30k-images", "flickr30k_images", "images"),
        ),
        BenchmarkFormat("chinese-clip", "Chinese-CLIP format", ("{split}_texts.jsonl",), read_retrieval_lines, ()),
        BenchmarkFormat(
            "aic-icc",
            "AIC-ICC",
            ("caption_{split}_annotations_*.json", "*/caption_{split}_annotations_*.json"),
            read_aic_icc,
            task="captioning",
        ),
        BenchmarkFormat(
            "coco-cn", "COCO-CN", ("coco-cn_{split}.txt",), read_coco_cn, ("train2014", "val2014", "images")
        ),
        BenchmarkFormat("zero", "Zero", ("{split}.json", "{split}.jsonl", "*_{split}.json"), read_zero),
        BenchmarkFormat("wukong", "Wukong", (), read_retrieval_lines),
    )
}
#: Captions of COCO-CN beside its lists of splits; the benchmark's are those that people wrote.
_COCO_CN_CAPTIONS = "imageid.human-written-caption.txt"


@dataclass(frozen=True)
class Source:
    """One file (or address) to read and how; streamed says that it is a tar shard, which has no length."""

    name: str
    read: Callable[[str, Reading], Records]
    streamed: bool = False

    @property
    def path(self) -> Path:
        return Path(self.name)


def find_sources(spec: BenchmarkFormat, paths: list[str], split: str | None) -> list[Source]:
    """The files of `paths` (files, or folders of the set) that make up a split.

    Raises:
        FileNotFoundError: there is none; lists where it was looked for.
        ValueError: several splits and none named; a file without pictures.
    """
    sources = []
    for text in paths:
        path = Path(text)
        if "://" in text or _is_shard(path):
            sources.append(_shard(spec, text))
        elif path.is_dir():
            sources += _in_folder(spec, path, split)
        elif spec.name == "wukong":
            refuse_addresses(path)
        elif split is not None:
            raise ValueError(f"{path} is one file: give its folder with the split {split!r}, or the file alone")
        else:
            sources.append(_file(spec, path))
    return sources


def _in_folder(spec: BenchmarkFormat, folder: Path, split: str | None) -> list[Source]:
    if spec.name in ("wukong", "zero") and _is_fetched(folder):
        return [_shard(spec, shard) for shard in shards_of(folder)]
    if spec.name == "wukong":
        shards_of(folder)  # says what is missing
    found = _splits(spec, folder)
    if split is None and len(found) == 1:
        split = next(iter(found))
    if split is None and found:
        raise ValueError(
            f"{folder} has the splits {', '.join(sorted(found))} of {spec.title}: name one with split=, or its file"
        )
    if split not in found:
        places = ", ".join(pattern.format(split=split or "SPLIT") for pattern in spec.files)
        others = f"; there are {', '.join(sorted(found))}" if found else ""
        wanted = spec.title if split is None else f"{spec.title} {split!r}"
        raise FileNotFoundError(f"{folder} has no split of {wanted}: looked for {places}{others}")
    return [_file(spec, path) for path in found[split]]


def _splits(spec: BenchmarkFormat, folder: Path) -> dict[str, list[Path]]:
    """Files of every split that the folder has; of several places the first that holds the split."""
    found: dict[str, list[Path]] = {}
    for pattern in spec.files:
        here: dict[str, list[Path]] = {}
        name = re.escape(pattern).replace(r"\*", "[^/]*")
        name = name.replace(r"\{split\}", "(?P<split>[^/]+?)", 1).replace(r"\{split\}", "(?P=split)")
        for path in sorted(folder.glob(pattern.format(split="*"))):
            inner = path.relative_to(folder)
            if path.is_file() and not in_junk(inner) and (match := re.fullmatch(name, inner.as_posix())):
                here.setdefault(match["split"], []).append(path)
        found = {**here, **found}
    return found


def _file(spec: BenchmarkFormat, path: Path) -> Source:
    if spec.name == "coco-cn" and re.fullmatch(r"coco-cn_\w+\.txt", path.name):
        captions = path.with_name(_COCO_CN_CAPTIONS)
        if not captions.is_file():
            raise FileNotFoundError(f"{captions} does not exist: the captions of {path.name} belong there")
        return Source(str(captions), _by_name(partial(read_coco_cn, members=read_members(path))))
    return Source(str(path), _by_name(spec.read))


def _shard(spec: BenchmarkFormat, text: str) -> Source:
    readers = {"wukong": read_wukong_shard, "zero": read_zero_shard}
    if spec.name not in readers:
        raise ValueError(f"{text}: {spec.title} has no tar shards; img2dataset's output is format='wukong' or 'zero'")
    return Source(text, readers[spec.name], "://" in text or not Path(text).is_dir())


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tgz", ".tar.gz"))


def _is_fetched(folder: Path) -> bool:
    return bool(data_files(folder, "*.tar")) or any(folder.rglob("*_stats.json"))


def _by_name(read: Callable[[Path, Reading], Records]) -> Callable[[str, Reading], Records]:
    return partial(_read_path, read)


def _read_path(read: Callable[[Path, Reading], Records], path: str, reading: Reading) -> Records:
    yield from read(Path(path), reading)


def image_root_of(spec: BenchmarkFormat, file: Path) -> Path:
    """Where the pictures of a file lie when nobody says: a folder of a usual name beside it or up to two above, else
    the file's own folder."""
    if file.is_dir():  # what img2dataset wrote
        return file
    names = spec.image_folders
    if split := re.match(r"caption_(.+?)_annotations", file.name):  # AIC-ICC: a folder for every split
        names = (f"caption_{split[1]}_images_*", *names)
    for folder in (file.parent, *list(file.parent.parents)[:2]):
        for name in names:
            if found := next((path for path in sorted(folder.glob(name)) if path.is_dir()), None):
                # COCO's pictures are spread over two folders, which `in_folders` tells apart
                return folder if spec.name == "coco-cn" and name != "images" else found
    return file.parent


def in_folders(spec: BenchmarkFormat, root: Path, records: Records) -> Records:
    """The records with their picture's path below `root`: COCO's lie in `train2014` and `val2014`, Zero's names lack
    their suffix."""
    known: dict[str, bool] = {}

    def has(folder: str) -> bool:
        if folder not in known:
            known[folder] = (root / folder).is_dir()
        return known[folder]

    for item in records:
        if isinstance(item, RawPair) and isinstance(name := item.image, str):
            if spec.name == "coco-cn" and (match := re.match(r"COCO_(\w+?)_", name)) and has(match[1]):
                item = replace(item, image=f"{match[1]}/{name}")
            elif spec.name == "zero" and Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                item = replace(item, image=_any_suffix(root, name))
        yield item


def _any_suffix(root: Path, name: str) -> str:
    """The name with the suffix of the file that is there; with .jpg, to be reported missing, where none is."""
    if (root / name).is_file():
        return name
    return next(
        (name + end for end in (".jpg", ".png", ".jpeg", ".webp") if (root / (name + end)).is_file()), f"{name}.jpg"
    )

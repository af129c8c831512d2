"""Pairs from anything that the package reads: files, folders, published sets, tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import ImageColor

from .emoji import DemoPairs
from .formats import BENCHMARKS
from .named import load_named, named_set
from .pairs import CheckImages, PairDataset, collect, finish
from .records import Columns, Reading, image_folder, resolve_columns
from .report import ErrorReport
from .sources import FORMATS, class_split, detect_format, expand, files_of, reader_of, split_of_folder
from .streaming import StreamingPairs
from .tables import ImageColumn, choose_split, load_parquet, open_saved, read_table
from .text_files import named_codec


def load_pairs(
    source: Any,
    *,
    format: str | None = None,
    image_root: str | os.PathLike | None = None,
    split: str | None = None,
    columns: Columns = None,
    on_error: Literal["skip", "refuse"] = "skip",
    max_error_rate: float = 0.01,
    streaming: bool = False,
    check_images: CheckImages = "header",
    background: str | tuple[int, int, int] | None = None,
    encoding: str | None = None,
    quiet: bool = False,
) -> PairDataset | DemoPairs | StreamingPairs:
    """Read image-text pairs.

    | format | source |
    |---|---|
    | `jsonl` | an object per line: `image` (or `image_path`), `text` (or `caption`; one or a list), maybe `image_id` |
    | `csv`, `tsv` | a header with the same names; or none, and `columns=["image", "text"]` |
    | `classes` | a folder of pictures for every class: its name is the text |
    | `folder` | pictures, and `captions.txt`, or `captions` or `metadata` as .jsonl, .csv, .tsv, or a .txt each |
    | `parquet` | columns of images (or paths) and texts |
    | `dataset` | a data set of the `datasets` library, or a folder written by its `save_to_disk` |
    | `webdataset` | tar shards; always streamed |
    | `icm`, `iqm` | ICM and IQM of CCMB: labelled pairs, JSON lines `text, image_path, label` |
    | `icr`, `iqr` | ICR and IQR of CCMB: JSON lines `text, image_path` |
    | `flickr30k-cna` | `image_id#n<TAB>caption` |
    | `chinese-clip` | `SPLIT_texts.jsonl` with `SPLIT_imgs.tsv` (MUGE, Flickr30k-CN) |
    | `aic-icc`, `coco-cn` | JSON with five captions a picture; COCO-CN's captions with its lists of splits |
    | `zero` | Zero's JSON, several texts a picture; pictures named by `ImageKey`, or `img2dataset`'s output |
    | `wukong` | `img2dataset`'s output for Wukong's CSV files |

    The published sets take the file, or their folder and a split. `emoji:google,apple` and `scenes:google/train` are
    the package's own sets, see `named`.

    No bad record passes silently: a malformed line, an empty caption, a missing or broken picture is counted
    with file and line in `.report`, and skipped or refused as `on_error` says; a warning lists the first few.

    Args:
        source: a path, a glob, a list of paths, a range `shard-{000..127}.tar`, or a `datasets` object.
        format: one of the above; default by suffix or by what the folder holds.
        image_root: relative picture paths begin here; default the folder of the data file.
        split: of a `datasets` dictionary, or a sub-folder or file name of a folder.
        columns: your names, e.g. `{"image": "img_file", "text": "title"}`, or a list for files without header;
            `{"label": "match"}` reads labelled pairs, `{"group": "twins"}` groups of pairs, all of one size and each in
            successive lines, that training keeps in one batch. Other usual names (`Filename`, `图片`, `标题`, …) are
            found, and what was taken is noted in the report.
        on_error: "skip" bad records up to `max_error_rate`; "refuse" any.
        max_error_rate: largest tolerated share of bad records when skipping.
        streaming: read while iterating instead of listing first; see `StreamingPairs`.
        check_images: at loading, read each picture's "header" (format and size), see whether its file "exists",
            or "none". Decoding errors show at access.
        background: composite transparent pictures on this colour, e.g. "white"; default alpha is dropped.
        encoding: of text files and tables, e.g. "gb18030"; default UTF-8, UTF-16 or GB18030, whichever it is.
        quiet: do not log what was bad at loading: the caller tells it, from `report`.

    Raises:
        DataRefusedError: too many bad records; lists the first few.
        FileNotFoundError, ValueError: no such source, unknown format, no matching columns, nothing in it.
    """
    if (own := named_set(source)) is not None:
        given: dict[str, Any] = {"format": format, "image_root": image_root, "columns": columns, "encoding": encoding}
        given |= {"background": background, "streaming": streaming or None}
        if unfit := [option for option, value in given.items() if value is not None]:
            raise ValueError(f"{own} is made by the package and reads no files: {unfit[0]} does not go with it")
        return load_named(own, split)
    if check_images not in ("header", "exists", "none"):
        raise ValueError(f"check_images is {check_images!r}; use 'header', 'exists' or 'none'")
    if format is not None and format not in (*FORMATS, *BENCHMARKS):
        raise ValueError(f"format is {format!r}; use one of {', '.join([*FORMATS, *BENCHMARKS])}")
    if isinstance(background, str):
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise ValueError(f"background is {background!r}, no colour: use a name or #rrggbb") from error
    if encoding is not None:
        named_codec(encoding)
    reading = Reading(columns, encoding, image_root=None if image_root is None else Path(image_root))
    report = ErrorReport(on_error, max_error_rate)
    report.quiet = quiet
    if _is_hf(source):
        dataset, name = choose_split(source, split, "the data set"), "data set"
        if not hasattr(dataset, "num_rows"):
            raise ValueError("a streaming `datasets` object has no length: load it without streaming")
        return _from_table(dataset, name, [], [], report, reading, check_images, background)
    paths = expand(source)
    if not paths:
        raise ValueError("no files were named")
    if format in BENCHMARKS:
        from .published import load_published

        options: dict[str, Any] = {"reading": reading, "background": background}
        return load_published(BENCHMARKS[format], paths, split, report, check_images, streaming, **options)
    if format is None:
        format = detect_format(paths)
    else:
        paths = files_of(paths, format)
    if split is not None and format not in ("folder", "classes", "dataset"):
        raise ValueError(
            f"{paths[0]} ({format}) has no splits: name the file of the split {split!r} itself, and no split"
        )
    if format == "folder":
        paths = [part for path in paths for part in split_of_folder(Path(path), split)]
        format = "folder" if all(Path(path).is_dir() for path in paths) else detect_format(paths)
    if format == "classes" and split is not None:
        paths = [class_split(Path(path), split) for path in paths]
    if format == "webdataset" or streaming:
        return StreamingPairs(paths, reader_of(format), reading=reading, background=background, report=report)
    if format in ("dataset", "parquet"):
        files, ends = [Path(path) for path in paths if format == "parquet"], list[int]()
        if format == "dataset":
            dataset = choose_split(open_saved(paths[0]), split, paths[0])
        else:
            dataset, ends = load_parquet(files)
        return _from_table(dataset, paths[0], files, ends, report, reading, check_images, background)

    roots = [image_folder(path) if image_root is None else Path(image_root) for path in paths]
    read = reader_of(format)
    records = ((root, item) for path, root in zip(paths, roots, strict=True) for item in read(path, reading))
    table = collect(records, report, check_images, apart=len(set(roots)) > 1)
    return finish(PairDataset(table, report, background=background), str(paths[0]), reading)


def _from_table(
    dataset: Any,
    name: str,
    files: Sequence[Path],
    ends: Sequence[int],
    report: ErrorReport,
    reading: Reading,
    check_images: CheckImages,
    background: str | tuple[int, int, int] | None,
) -> PairDataset:
    image_column = resolve_columns(dataset.column_names, reading)["image"]
    root = reading.image_root or Path()
    roots = {str(file): reading.image_root or file.parent for file in files}
    rows = read_table(dataset, reading, name=name, files=files, file_ends=ends)
    records = ((roots.get(item.source, root), item) for item in rows)
    table = collect(records, report, check_images, apart=len(set(roots.values())) > 1)
    pairs = PairDataset(table, report, images=ImageColumn(dataset, image_column), background=background)
    return finish(pairs, name, reading)


def _is_hf(source: Any) -> bool:
    """Whether the object comes from the `datasets` library, without importing it."""
    if isinstance(source, str | os.PathLike):
        return False
    return any(kind.__module__.split(".")[0] == "datasets" for kind in type(source).__mro__)

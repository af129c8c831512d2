"""What `img2dataset` leaves behind: pictures fetched from the addresses of Wukong and Zero.

Wukong's CSV files hold `url,caption`, Zero's JSON `ImageUrl` and several texts; neither holds a picture. Fetch with

    img2dataset --url_list wukong_100m_0.csv --input_format csv --url_col url --caption_col caption \\
        --output_format webdataset --output_folder wukong --resize_mode keep_ratio --image_size 256
    img2dataset --url_list zero.json --input_format json --url_col ImageUrl --output_format webdataset \\
        --save_additional_columns '["Title","Content","ImageQuery","ImageKey"]' --output_folder zero

and read the output folder. A sample is `000000017.jpg` with `.txt` (the caption) and `.json` (all columns, and
`key`, `url`, `status`), in tar shards (`00000.tar`) or, with `--output_format files`, in folders (`00000/`). Beside
each shard `00000_stats.json` counts what could not be fetched: reported as a note, since no file is broken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .listing import Walk, data_files, is_image
from .records import PLAIN, RawPair, Reading, clean_texts
from .report import Problem
from .text_files import decode_text
from .webdataset import read_tar
from .zero import text_fields, zero_texts

_FETCHED = "success"


def read_wukong_shard(path: str, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Samples of a tar shard or of a folder of files, each known by its address, so that one picture has one id."""
    yield from _samples(path, None)


def read_zero_shard(path: str, reading: Reading = PLAIN) -> Iterator[RawPair | Problem]:
    """Samples of Zero, each with its several texts, known by `ImageKey`."""
    yield from _samples(path, text_fields(reading))


def refuse_addresses(path: Path) -> None:
    """A file of addresses has no pictures.

    Raises:
        ValueError: says how to get them.
    """
    raise ValueError(
        f"{path} holds addresses, not pictures. Fetch them: img2dataset --url_list {path.name} --input_format csv "
        "--url_col url --caption_col caption --output_format webdataset --output_folder FOLDER; then read FOLDER"
    )


def shards_of(folder: Path) -> list[str]:
    """The tar shards of an output folder, or the folder itself where it holds files.

    Raises:
        ValueError: it holds neither.
    """
    shards = [str(path) for path in data_files(folder, "*.tar")]
    if shards:
        return shards
    if any(folder.glob("*/*.json")) or any(folder.glob("*.json")):
        return [str(folder)]
    raise ValueError(f"{folder} holds no .tar shards and no pictures with .json files: is it img2dataset's output?")


def not_fetched(folder: Path) -> str | None:
    """What the downloads' own statistics say of failures, in one line; None where there were none."""
    wanted, statuses = 0, Counter[str]()
    for path in sorted(folder.rglob("*_stats.json")):
        try:
            stats = json.loads(path.read_text(encoding="utf-8"))
            wanted += stats["count"]
            statuses.update(stats["status_dict"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a statistics file of img2dataset: {error!r}") from error
    failed = wanted - statuses.pop(_FETCHED, 0)
    if not failed:
        return None
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in statuses.most_common(5))
    return f"{failed:,} of {wanted:,} addresses were not fetched ({reasons})"


def _samples(path: str, fields: tuple[str, ...] | None) -> Iterator[RawPair | Problem]:
    if "://" not in path and Path(path).is_dir():
        yield from _folder(Path(path), fields)
        return
    # the columns travel in the .json member; it is taken as a record of our own
    yield from read_tar(path, describe=lambda row, source, number: _record(row, fields, source, number))


def _folder(folder: Path, fields: tuple[str, ...] | None) -> Iterator[RawPair | Problem]:
    for image in Walk(folder):
        if isinstance(image, Problem):
            yield image
            continue
        if not is_image(image):  # the captions, and the statistics of the shards
            continue
        source = str(image.with_suffix(".json"))
        try:
            row = json.loads(decode_text(Path(source).read_bytes())[0])
        except FileNotFoundError:
            yield Problem(str(image), None, f"there is no {image.stem}.json beside it")
            continue
        except (ValueError, RecursionError) as error:
            yield Problem(source, 1, f"not JSON: {error}")
            continue
        record = _record(row, fields, source, 1)
        yield record if isinstance(record, Problem) else replace(record, image=image.relative_to(folder).as_posix())


def _record(row: object, fields: tuple[str, ...] | None, source: str, number: int) -> RawPair | Problem:
    """The texts and the id of one sample, its picture still missing."""
    if not isinstance(row, Mapping):
        return Problem(source, number, f"its .json is a {type(row).__name__}, not an object")
    if fields is not None:
        record = zero_texts(row, fields, source, number)
        key = row.get("ImageKey") or row.get("url")
    else:
        key = row.get("url")
        try:
            record = RawPair(source, number, None, clean_texts(row.get("caption"))[0])
        except ValueError as error:
            return Problem(source, number, str(error))
    if isinstance(record, Problem):
        return record
    return record if key is None else replace(record, image_id=str(key))

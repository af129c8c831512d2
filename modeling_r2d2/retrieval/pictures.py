"""What is indexed: the pictures of a folder, of JSON lines or CSV, of tables and of tar shards, each with its id.

Captions are optional here, unlike in pre-training: with them an index also answers picture → text.
"""

import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..processing.datasets.folder import find_captions_file, read_captions_file
from ..processing.datasets.images import IMAGE_SUFFIXES, ImageReadError, open_image
from ..processing.datasets.records import ALIASES, is_unicode
from ..processing.datasets.report import Problem
from ..processing.datasets.sources import FORMATS, detect_format, expand
from ..processing.datasets.tables import choose_split, image_reference, load_parquet


@dataclass(frozen=True)
class Picture:
    """One picture before it is read.

    id: unique within an index. path: its file, or the archive that holds it; offset, size: where in the archive.
    data: its bytes where they lie in no file that can be read again. texts: its captions. location: for messages.
    """

    id: str
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    offset: int | None = None
    size: int | None = None
    mtime_ns: int | None = None
    texts: tuple[str, ...] = ()
    location: str = ""

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            ImageReadError: there is no such file any more, or it cannot be read.
        """
        if self.data is not None:
            return self.data
        if self.path is None:
            raise ImageReadError(f"{self.id}: this picture came from a table and cannot be read again")
        try:
            with open(self.path, "rb") as file:
                if self.offset is None:
                    return file.read()
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ImageReadError(f"{self.path}: {error.strerror or error}") from error

    def open(self) -> Image.Image:
        """The picture, RGB.

        Raises:
            ImageReadError: it cannot be read or decoded.
        """
        return open_image(self.read(), name=self.path or self.location or self.id)

    def state(self) -> str | None:
        """None where the file is as it was indexed, else "missing" or "changed" (by size and time)."""
        if self.path is None or self.mtime_ns is None:
            return None
        try:
            now = os.stat(self.path)
        except OSError:
            return "missing"
        same_size = self.offset is not None or now.st_size == self.size
        return None if same_size and now.st_mtime_ns == self.mtime_ns else "changed"


def digest_of(data: bytes) -> str:
    """The content hash of a picture's file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def list_pictures(
    source: Any, format: str | None = None, image_root: str | PathLike | None = None, split: str | None = None
) -> Iterator[Picture | Problem]:
    """The pictures of a source in a fixed order; what is wrong with a record comes as a `Problem`.

    | source | id of a picture |
    |---|---|
    | a folder, with all below it; captions from `metadata.jsonl`, `captions.txt` … where there is one | path below it |
    | JSON lines, CSV, TSV with a header: `image`, maybe `text`, maybe `image_id` | image_id, else its path |
    | Parquet, a `datasets` data set, or a folder that its `save_to_disk` wrote | image_id, else file name and row |
    | tar shards (WebDataset) | shard name / name within it |

    Symbolic links are followed, a loop of them once. Several lines of one picture are its several captions.

    Args:
        source: a path, glob, list of paths, range `shard-{000..127}.tar`, or a `datasets` object.
        format: one of jsonl, csv, tsv, folder, parquet, webdataset, dataset; default by suffix or content.
        image_root: relative paths of JSON lines and CSV begin here; default the folder of the file.

    Raises:
        FileNotFoundError, ValueError: no such source, unknown format, no column that names pictures.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}; use one of {', '.join(FORMATS)}")
    if hasattr(source, "features") and hasattr(source, "num_rows") or hasattr(source, "keys"):
        yield from _from_table(choose_split(source, split, "the data set"), "data set")
        return
    paths = expand(source)
    if not paths:
        raise ValueError("no files were named")
    format = format or _detect(paths)
    if format == "folder":
        for path in paths:
            yield from _from_folder(Path(path), prefix=f"{Path(path).name}/" if len(paths) > 1 else "")
    elif format == "webdataset":
        for path in paths:
            yield from _from_tar(path)
    elif format == "parquet":
        yield from _from_table(load_parquet([Path(path) for path in paths])[0], "parquet")
    elif format == "dataset":
        from datasets import load_from_disk

        for path in paths:
            yield from _from_table(choose_split(load_from_disk(path), split, path), Path(path).name)
    else:
        yield from _merged(
            (row, line, Path(path), Path(image_root) if image_root is not None else Path(path).parent)
            for path in paths
            for row, line in _rows(Path(path), format)
        )


def _detect(paths: list[str]) -> str:
    """The format by suffix, or by what a folder holds."""
    if all(Path(path).suffix.lower() in IMAGE_SUFFIXES for path in paths):
        raise ValueError(f"{paths[0]} is a picture: name the folder that holds it, or a list of pictures as CSV")
    return detect_format(paths)


def _from_folder(folder: Path, prefix: str = "") -> Iterator[Picture | Problem]:
    captions: dict[str, tuple[str, ...]] = {}
    file = find_captions_file(folder)
    if file is not None:
        for item in read_captions_file(file):
            if isinstance(item, Problem):
                yield item
            elif isinstance(item.image, str):
                name = os.path.normpath(item.image)
                captions[name] = captions.get(name, ()) + item.texts
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if not is_unicode(name):
            yield Problem(ascii(str(path)), None, "the file's name is not valid UTF-8: rename it")
            continue
        texts = captions.get(os.path.normpath(name), ())
        yield _file_picture(f"{prefix}{name}", path, texts)


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures below a folder in the order of their paths, links followed, every folder once."""
    seen: set[tuple[int, int]] = set()

    def visit(place: Path) -> Iterator[Path]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_dir():
                if not entry.name.startswith("."):
                    yield from visit(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:  # a broken link too: it is reported when it is read
                yield path

    yield from visit(folder)


def _file_picture(id: str, path: Path, texts: tuple[str, ...] = (), location: str = "") -> Picture:
    try:
        status = os.stat(path)
    except OSError:  # found out, and reported, when it is read
        return Picture(id, os.path.abspath(path), texts=texts, location=location or str(path))
    return Picture(
        id,
        os.path.abspath(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        texts=texts,
        location=location or str(path),
    )


def _rows(path: Path, format: str) -> Iterator[tuple[dict | Problem, int]]:
    if format == "jsonl":
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield Problem(str(path), number, f"not JSON in UTF-8: {error}"), number
                    continue
                problem = Problem(str(path), number, f"a JSON {type(row).__name__}, not an object")
                yield (row if isinstance(row, dict) else problem), number
        return
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if format == "tsv" else (",", csv.QUOTE_MINIMAL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting, restkey="", strict=True)
        try:
            if not set(reader.fieldnames or ()) & set(ALIASES["image"]):
                raise ValueError(
                    f"{path}: header line: no column for the image ({', '.join(ALIASES['image'])}); "
                    f"there are {reader.fieldnames}"
                )
            for row in reader:
                wrong = "" in row or None in row.values()
                problem = Problem(str(path), reader.line_num, f"not {len(reader.fieldnames)} fields, as the header")
                yield (problem if wrong else row), reader.line_num
        except csv.Error as error:
            yield (
                Problem(
                    str(path), reader.line_num, f"malformed row, and the rest is not read: {error}", incomplete=True
                ),
                0,
            )


def _merged(rows: Iterable[tuple[dict | Problem, int, Path, Path]]) -> Iterator[Picture | Problem]:
    """Records with the captions of all lines of one picture; its place is that of its first line."""
    pictures: dict[str, tuple[Path, list[str], str]] = {}
    for row, line, file, root in rows:
        if isinstance(row, Problem):
            yield row
            continue
        try:
            name, id, texts = _values(row)
        except ValueError as error:
            yield Problem(str(file), line, str(error))
            continue
        path = root / name
        known = pictures.setdefault(id, (path, [], f"{file}:{line}"))
        if known[0] != path:
            yield Problem(str(file), line, f"image_id {id!r} names {path}, and in {known[2]} it names {known[0]}")
            continue
        known[1].extend(text for text in texts if text not in known[1])
    for id, (path, texts, location) in pictures.items():
        yield _file_picture(id, path, tuple(texts), location)


def _values(row: dict) -> tuple[Any, str, list[str]]:
    """Image, id and captions of a row.

    Raises:
        ValueError: no image, or values of the wrong kind.
    """
    image = next((row[name] for name in ALIASES["image"] if row.get(name)), None)
    if image is None:
        raise ValueError(f"no image: none of {', '.join(ALIASES['image'])} has a value")
    if isinstance(image, str) and ("\0" in image or not is_unicode(image)):
        raise ValueError("the image's path holds a NUL character or is not valid UTF-8")
    if not isinstance(image, str | bytes | dict):
        raise ValueError(f"the image is {type(image).__name__}, not a path")
    given = next((row[name] for name in ALIASES["image_id"] if row.get(name) not in (None, "")), None)
    text = next((row[name] for name in ALIASES["text"] if row.get(name)), [])
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) and is_unicode(each) for each in texts):
        raise ValueError("the text is not a string or a list of strings in UTF-8")
    id = str(given) if given is not None else image if isinstance(image, str) else ""
    return image, id, [each.strip() for each in texts if each.strip()]


def _from_table(dataset: Any, name: str) -> Iterator[Picture | Problem]:
    import datasets

    columns = [column for column in ALIASES["image"] if column in dataset.column_names]
    if not columns:
        raise ValueError(f"{name}: no column for the image ({', '.join(ALIASES['image'])}); {dataset.column_names}")
    if isinstance(dataset.features[columns[0]], datasets.Image):
        dataset = dataset.cast_column(columns[0], datasets.Image(decode=False))
    for number, row in enumerate(dataset.with_format(None), start=1):
        cell = row[columns[0]]
        inner = cell.get("path") if isinstance(cell, dict) else None
        row = {**row, columns[0]: image_reference(cell)}
        try:
            image, id, texts = _values(row)
        except ValueError as error:
            yield Problem(name, number, str(error))
            continue
        location = f"{name}:{number}"
        if isinstance(image, str):
            yield _file_picture(id, Path(image), tuple(texts), location)
        else:
            yield Picture(id or f"{number:08}-{inner or 'picture'}", None, image, texts=tuple(texts), location=location)


def _from_tar(path: str) -> Iterator[Picture | Problem]:
    """Members of one shard, read as a stream. Of an uncompressed local one, pictures can be read again by offset."""
    shard = PurePosixPath(path).name
    again = path.endswith(".tar") and "://" not in path
    mtime = os.stat(path).st_mtime_ns if again else None
    waiting: dict[str, Any] = {}

    def finished() -> Iterator[Picture]:
        if "picture" in waiting:
            yield Picture(texts=tuple(waiting.get("texts", ())), **waiting["picture"])
        waiting.clear()

    try:
        with _open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, suffix = name.name.partition(".")
                key = (name.parent / stem).as_posix()
                if waiting.get("key") != key:
                    yield from finished()
                    waiting["key"] = key
                data = archive.extractfile(member).read()
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    waiting["picture"] = {
                        "id": f"{shard}/{member.name}",
                        "path": os.path.abspath(path) if again else None,
                        "data": data,
                        "offset": member.offset_data if again else None,
                        "size": member.size,
                        "mtime_ns": mtime,
                        "location": f"{path}/{member.name}",
                    }
                elif suffix.lower() in ("txt", "json"):
                    try:
                        waiting["texts"] = _member_texts(suffix.lower(), data)
                    except ValueError as error:
                        yield Problem(f"{path}/{member.name}", None, f"its text cannot be read: {error}")
        yield from finished()
    except (tarfile.TarError, EOFError, OSError) as error:
        yield from finished()
        yield Problem(path, None, f"the shard cannot be read from here on: {error}", incomplete=True)


def _member_texts(suffix: str, data: bytes) -> list[str]:
    text = data.decode("utf-8-sig")
    if suffix == "txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    row = json.loads(text)
    return _values({**row, "image": "-"})[2] if isinstance(row, dict) else []


def _open_binary(path: str) -> io.BufferedIOBase:
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


__all__ = ["Picture", "digest_of", "list_pictures"]

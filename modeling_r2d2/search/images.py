"""What is indexed: the pictures of a folder, of JSON lines or CSV, of tables and of tar shards, each with its id.

Captions are optional here, unlike in pre-training: with them an index also answers picture → text.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.datasets import load_pairs
from ..processing.datasets.emoji import DemoPairs
from ..processing.datasets.folder import find_captions_file
from ..processing.datasets.listing import has_images, is_image
from ..processing.datasets.named import named_set
from ..processing.datasets.places import located
from ..processing.datasets.records import Columns, RawPair, Reading
from ..processing.datasets.report import Note, Problem
from ..processing.datasets.sources import (
    FORMATS,
    class_split,
    detect_format,
    expand,
    files_of,
    reader_of,
    split_of_folder,
)
from ..processing.datasets.tables import choose_split, load_parquet, open_saved, read_table
from ..processing.datasets.text_files import named_codec
from ..processing.files.images import ImageReadError, open_image, open_regular

logger = logging.getLogger(__name__)
Records = Iterator[RawPair | Problem]


@dataclass(frozen=True, slots=True)
class CollectionImage:
    """One picture before it is read.

    Attributes:
        id: Unique within an index.
        path: Its file, or the archive that holds it.
        offset: Where it begins in the archive.
        size: Its bytes there.
        data: Its bytes where they lie in no file that can be read again.
        texts: Its captions.
        location: For messages.
        source: What it was listed from, as words of a command line.
        metadata: The source's other columns of it, as JSON.
    """

    id: str
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    offset: int | None = None
    size: int | None = None
    mtime_ns: int | None = None
    texts: tuple[str, ...] = ()
    location: str = ""
    source: str = ""
    metadata: str | None = None

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
            with open_regular(self.path) as file:
                if self.offset is None:
                    return file.read()
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise ImageReadError(f"{self.path}: {error.strerror or error}") from error

    def open(self, **opening: Any) -> Image.Image:
        """The picture, RGB and upright, or as the options of `open_image` say otherwise.

        Raises:
            ImageReadError: it cannot be read or decoded.
        """
        name = self.path or self.location or self.id
        return open_image(self.read(), name=name, **opening)

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


def list_images(
    source: Any,
    format: str | None = None,
    image_root: str | PathLike | None = None,
    split: str | None = None,
    columns: Columns = None,
    encoding: str | None = None,
    note: Callable[[Note], None] | None = None,
) -> Iterator[CollectionImage | Problem]:
    """The pictures of a source in a fixed order, by the readers of training; what is wrong comes as a `Problem`.

    | source | id of a picture: image_id where the source gives one, else |
    |---|---|
    | a folder, with all below it; captions from `metadata.jsonl`, `captions.txt`, … or texts beside | path below it |
    | JSON lines, CSV, TSV with a header: `image`, maybe `text`, maybe `image_id` | its path |
    | Parquet, a `datasets` data set, or a folder that its `save_to_disk` wrote | its path, or row and file name |
    | tar shards (WebDataset) | shard name / name within it |
    | `emoji:VENDORS`, `scenes:VENDORS/SPLIT` | vendor / what is drawn |

    Of several sources each id begins with the source's name, and of those of one name with what tells them apart.
    Symbolic links are followed, a loop of them once. Several lines of one picture are its several captions.

    Args:
        source: a path, glob, list of paths, range `shard-{000..127}.tar`, or a `datasets` object.
        format: one of jsonl, csv, tsv, folder, classes, parquet, webdataset, dataset; default by suffix or content.
        image_root: relative paths of JSON lines and CSV begin here; default the folder of the file.
        columns: as in `load_pairs`.
        encoding: as in `load_pairs`.
        note: called with what is worth telling and spoils nothing, such as ignored files; default: logged.

    Raises:
        FileNotFoundError, ValueError: no such source, unknown format, no column that names pictures.
    """
    if (name := named_set(source)) is not None:
        yield from _drawn(name, format=format, image_root=image_root, split=split, columns=columns, encoding=encoding)
        return
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}; use one of {', '.join(FORMATS)}")
    if encoding is not None:
        named_codec(encoding)
    reading = Reading(columns, encoding, False, None if image_root is None else Path(image_root), metadata=True)
    if hasattr(source, "features") and hasattr(source, "num_rows") or hasattr(source, "keys"):
        table = choose_split(source, split, "the data set")
        found: Iterator[CollectionImage | Problem] = _from_table(read_table(table, reading), reading, {})
    else:
        found = _from_paths(_parts(expand(source), format, split), split, reading)
    for item in found:
        if not isinstance(item, Note):
            yield item
        elif note is not None:
            note(item)
        else:
            logger.warning("%s: %s", item.source, item.message)


def _parts(paths: list[str], format: str | None, split: str | None) -> list[tuple[str, str]]:
    """(format, path) of every file or folder to read, each once; one without pictures stands for its data files."""
    if not paths:
        raise ValueError("no files were named")
    if format is None and all(is_image(path) and os.path.isfile(path) for path in paths):
        raise ValueError(f"{paths[0]} is a picture: name the folder that holds it, or a list of pictures as CSV")
    parts: list[tuple[str, str]] = []
    for path in paths if format is None else files_of(paths, format):
        kind = format or detect_format([path])
        if kind == "classes" and split is not None:
            path = class_split(Path(path), split)
        if kind != "folder" or (split is None and (find_captions_file(Path(path)) or has_images(Path(path)))):
            parts.append((kind, path))
            continue
        try:
            inner = split_of_folder(Path(path), split)
        except ValueError:
            if split is not None:
                raise
            inner = [path]  # nothing known in it: the builder says that there is nothing to index
        parts += [("folder" if os.path.isdir(each) else detect_format([each]), each) for each in inner]
    return list({(kind, os.path.abspath(path)): (kind, path) for kind, path in parts}.values())


def _from_paths(
    parts: list[tuple[str, str]], split: str | None, reading: Reading
) -> Iterator[CollectionImage | Problem]:
    names = _labels([path for _, path in parts])
    roots = {path: str(reading.image_root or Path(path).parent) for _, path in parts}
    prefixes = _labels(list(roots.values()))
    several = len(parts) > 1
    listed: list[tuple[str, str]] = []
    parquet = [path for kind, path in parts if kind == "parquet"]
    for kind, path in parts:
        prefix = f"{names[path]}/" if several else ""
        if kind in ("folder", "classes"):
            folder = reading.image_root or Path(path)
            images = _from_files(reader_of(kind)(path, reading), folder, prefix)
            yield from _merged(images) if find_captions_file(Path(path)) else _each(images)
        elif kind == "webdataset":
            yield from _from_tar(path, names[path], reader_of(kind)(path, reading))
        elif kind == "dataset":
            table = choose_split(open_saved(path), split, path)
            yield from _from_table(read_table(table, reading, name=path), reading, {path: prefix})
        elif kind == "parquet":
            if path == parquet[0]:
                files = [Path(each) for each in parquet]
                table, ends = load_parquet(files)
                rows = read_table(table, reading, files=files, file_ends=ends)
                yield from _from_table(rows, reading, {each: f"{names[each]}/" if several else "" for each in parquet})
        else:
            listed.append((kind, path))
    apart = len({roots[path] for _, path in listed}) > 1
    yield from _merged(
        item
        for kind, path in listed
        for item in _from_files(
            reader_of(kind)(path, reading), Path(roots[path]), f"{prefixes[roots[path]]}/" if apart else ""
        )
    )


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each path that no other one has: its name, or with as many folders as tell it apart."""
    parts = {path: Path(os.path.abspath(path)).parts for path in paths}
    length = 1
    while length < max(map(len, parts.values())) and len({p[-length:] for p in parts.values()}) < len(
        set(parts.values())
    ):
        length += 1
    twice = Counter(each[-1] for each in set(parts.values()))
    return {path: "/".join(p[-length:] if twice[p[-1]] > 1 else p[-1:]).lstrip("/") for path, p in parts.items()}


_Placed = tuple[str, Path, tuple[str, ...], str, str | None]


def _from_files(records: Records, root: Path, prefix: str) -> Iterator[_Placed | Problem]:
    """Id, file, captions, place in the source and other columns of each record."""
    for item in records:
        item = item if isinstance(item, Problem) else located(item, root)
        if isinstance(item, Problem):
            yield item
        elif not isinstance(item.image, str):
            yield Problem(item.source, item.line, "the image is bytes, not a path")
        else:
            id = item.image_id or f"{prefix}{Path(os.path.normpath(item.image)).as_posix()}"
            yield id, root / item.image, item.texts, _location(item), item.metadata


def _each(images: Iterable[_Placed | Problem]) -> Iterator[CollectionImage | Problem]:
    for item in images:
        yield item if isinstance(item, Problem) else _file_image(*item)


def _merged(images: Iterable[_Placed | Problem]) -> Iterator[CollectionImage | Problem]:
    """Pictures with the captions of all their lines; place and other columns of one are those of its first line."""
    known: dict[str, tuple[Path, list[str], str, str | None]] = {}
    for item in images:
        if isinstance(item, Problem):
            yield item
            continue
        id, path, texts, location, metadata = item
        first = known.setdefault(id, (path, [], location, metadata))
        if os.path.normpath(first[0]) != os.path.normpath(path):
            yield Problem(location, None, f"image_id {id!r} names {path}, and in {first[2]} it names {first[0]}")
            continue
        first[1].extend(text for text in texts if text not in first[1])
    for id, (path, captions, location, metadata) in known.items():
        yield _file_image(id, path, tuple(captions), location, metadata)


def _from_table(records: Records, reading: Reading, prefixes: dict[str, str]) -> Iterator[CollectionImage | Problem]:
    for number, item in enumerate(records, start=1):
        root = reading.image_root or (Path(item.source).parent if item.source.endswith(".parquet") else Path())
        item = item if isinstance(item, Problem) else located(item, root)
        if isinstance(item, Problem):
            yield item
            continue
        prefix = prefixes.get(item.source, "")
        if isinstance(item.image, str):
            id = item.image_id or f"{prefix}{item.image}"
            yield _file_image(id, root / item.image, item.texts, _location(item), item.metadata)
        else:
            row = number if item.line is None else item.line
            id = item.image_id or f"{prefix}{row:08}-{(item.member and item.member.name) or 'picture'}"
            yield CollectionImage(
                id, None, item.image, texts=item.texts, location=_location(item), metadata=item.metadata
            )


def _drawn(name: str, **reading: Any) -> Iterator[CollectionImage]:
    """Pictures that the package makes: the same whenever they are listed."""
    pairs = load_pairs(name, **reading)
    assert isinstance(pairs, DemoPairs)  # as of every such name
    for row, ((_, vendor), key) in enumerate(zip(pairs.items, pairs.keys(), strict=True)):
        with BytesIO() as file:
            pairs.image(row).save(file, format="PNG")
            data = file.getvalue()
        id = f"{vendor}/{key}"
        yield CollectionImage(id, data=data, texts=tuple(pairs.texts(row)), location=f"{name} {id}")


def _from_tar(path: str, label: str, records: Records) -> Iterator[CollectionImage | Problem]:
    """Pictures of one shard. Of an uncompressed local one, they can be read again where they lie."""
    mtime = os.stat(path).st_mtime_ns if "://" not in path else None
    for item in records:
        if isinstance(item, Problem):
            yield item
            continue
        assert item.member is not None  # of an archive
        assert isinstance(item.image, bytes)
        again = item.member.offset is not None
        yield CollectionImage(
            id=item.image_id or f"{label}/{item.member.name}",
            path=os.path.abspath(path) if again else None,
            data=item.image,
            offset=item.member.offset,
            size=item.member.size,
            mtime_ns=mtime if again else None,
            texts=item.texts,
            location=f"{path}/{item.member.name}",
            metadata=item.metadata,
        )


def _location(item: RawPair) -> str:
    return item.source if item.line is None else f"{item.source}:{item.line}"


def _file_image(
    id: str, path: Path, texts: tuple[str, ...] = (), location: str = "", metadata: str | None = None
) -> CollectionImage:
    size, mtime_ns = None, None
    with suppress(OSError, ValueError):  # found out, and reported, when it is read
        status = os.stat(path)
        size, mtime_ns = status.st_size, status.st_mtime_ns
    return CollectionImage(
        id,
        os.path.abspath(path),
        size=size,
        mtime_ns=mtime_ns,
        texts=texts,
        location=location or str(path),
        metadata=metadata,
    )


__all__ = ["CollectionImage", "digest_of", "list_images"]

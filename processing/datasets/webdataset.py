"""WebDataset shards: tar files whose members of one base name are one sample.

    000017.jpg   the picture (.jpg, .jpeg, .png, .webp, ...)
    000017.txt   its caption; or 000017.json with the keys of our JSON lines (text, caption, image_id, ...)

Members of one sample lie next to one another, as the format demands. The format takes what stands before the first
dot for the sample's name and the rest for the field's, as in `000017.seg.png`; people's files have dots in their names
(`1.5升.png`, `截屏 12.30.45.png`). So a part between dots is a field only if it is written like one (letters, digits,
`_`, `-`, beginning with a letter) and the sample's caption stands under the name before it. Pictures of one name and
several suffixes are several pictures with the same captions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from .listing import is_image
from .records import LABEL, PLAIN, Member, RawPair, Reading, guess_notes, make_pair, resolve_columns
from .report import Note, Problem
from .tar_files import TarMember, read_members
from .text_files import decode_text

#: Makes a record without its picture from a sample's .json, for sets with columns of their own.
Describe = Callable[[object, str, int], RawPair | Problem]

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TEXTS = ("txt", "json")
#: More members than one sample has: then they share the beginning of their names by chance.
_MOST_MEMBERS = 64


@dataclass(frozen=True)
class _Named:
    """A member with its name in parts: `a/b.seg.png` is base `a/b`, field `seg`, suffix `png`, stem `a/b.seg`."""

    member: TarMember
    base: str
    field: str
    suffix: str

    @property
    def stem(self) -> str:
        return f"{self.base}.{self.field}" if self.field else self.base

    @property
    def is_image(self) -> bool:
        return is_image(f"x.{self.suffix}")

    @classmethod
    def of(cls, member: TarMember) -> _Named:
        name = PurePosixPath(member.name)
        parts = name.stem.split(".")
        kept = len(parts)
        while kept > 1 and _FIELD.fullmatch(parts[kept - 1]):
            kept -= 1
        base = (name.parent / ".".join(parts[:kept])).as_posix()
        return cls(member, base, ".".join(parts[kept:]), name.suffix.lower().removeprefix("."))


def read_tar(
    path: str,
    reading: Reading = PLAIN,
    describe: Describe | None = None,
) -> Iterator[RawPair | Problem]:
    """Samples of one shard in order, read as a stream, pictures as undecoded bytes.

    `path` may be an address that fsspec opens (`https://`, `hf://`, ...). A sample is placed as `shard.tar/name` and
    numbered from 1. What keeps the shard from being read whole comes as a `Problem` after the samples that could be
    read; pictures in fields of their own (`000017.seg.png`) and files that are no part of a sample are counted.

    Args:
        describe: takes a sample's .json in place of our own reading of it.
    """
    maker = _SampleMaker(path, reading, describe)
    run: list[_Named] = []
    for item in read_members(path, _is_wanted):
        if isinstance(item, Problem):
            if not isinstance(item, Note):
                yield from maker.samples(run)
                run = []
            yield item if item.line is not None or item.source != path else replace(item, line=maker.number + 1)
            continue
        named = _Named.of(item)
        again = any(other.member.name == item.name for other in run)  # a newer version, appended
        if run and (run[0].base != named.base or again or len(run) >= _MOST_MEMBERS):
            yield from maker.samples(run)
            run = []
        run.append(named)
    yield from maker.samples(run)
    if maker.fields:
        counts = tuple(maker.fields.items())
        yield Note(path, None, "pictures and texts in fields of a sample, which are not read", counts=counts)


def _is_wanted(name: str) -> bool:
    return is_image(name) or PurePosixPath(name).suffix.lower().removeprefix(".") in _TEXTS


class _SampleMaker:
    """Records from runs of members whose names begin alike."""

    def __init__(self, path: str, reading: Reading, describe: Describe | None) -> None:
        self.path, self.reading, self.describe = path, reading, describe
        self.number = 0
        self.fields: Counter[str] = Counter()
        self._resolved: dict[tuple[str, ...], dict[str, str]] = {}

    def samples(self, run: list[_Named]) -> Iterator[RawPair | Problem]:
        by_stem: dict[str, list[_Named]] = {}
        for named in run:
            by_stem.setdefault(named.stem, []).append(named)
        base = run[0].base if run else ""
        lone = [named for named in run if not named.is_image]
        if base in by_stem and len(lone) == 1 and lone[0].field and len(by_stem) == 2:
            by_stem = {base: run}  # a.jpg and a.caption.txt, or a.jpg.txt
        if not any(not named.is_image for named in by_stem.get(base, [])):
            for stem, members in by_stem.items():  # no sample whose fields these could be: names with dots
                yield from self._sample(stem, members)
            return
        fields: list[_Named] = []
        for stem, members in by_stem.items():
            if stem == base:
                continue
            if len({named.is_image for named in members}) == 2:  # a picture with a caption of its own
                yield from self._sample(stem, members)
            else:
                fields += members
        plain = by_stem[base]
        if not any(named.is_image for named in plain):
            found = [named for named in fields if named.is_image]
            if len(found) == 1:
                plain, fields = [*plain, *found], [named for named in fields if not named.is_image]
        self.fields.update(f".{named.field}.{named.suffix}" for named in fields)
        yield from self._sample(base, plain)

    def _sample(self, stem: str, members: list[_Named]) -> Iterator[RawPair | Problem]:
        self.number += 1
        images = [named for named in members if named.is_image]
        texts = {named.suffix: named.member.data for named in members if not named.is_image}
        if not images:
            listed = sorted(texts)
            yield Problem(f"{self.path}/{stem}", self.number, f"no picture among its members {listed}")
            return
        for named in images:
            source = f"{self.path}/{stem}" + (f".{named.suffix}" if len(images) > 1 else "")
            for item in self._record(source, texts, named.member.data):
                if isinstance(item, RawPair):
                    member = named.member
                    item = replace(item, member=Member(member.name, member.offset, len(member.data)))
                yield item

    def _record(self, source: str, texts: Mapping[str, bytes], image: bytes) -> Iterator[RawPair | Problem]:
        number, encoding = self.number, self.reading.encoding
        row: dict = {}
        held: dict = {}
        try:
            if self.describe is not None:
                if "json" not in texts:
                    yield Problem(source, number, f"no .json among its members {sorted(texts)}")
                    return
                pair = self.describe(json.loads(decode_text(texts["json"], encoding)[0]), source, number)
                yield pair if isinstance(pair, Problem) else replace(pair, image=image)
                return
            if "json" in texts:
                row = json.loads(decode_text(texts["json"], encoding)[0])
                if not isinstance(row, dict):
                    yield Problem(source, number, f"its .json is a {type(row).__name__}, not an object")
                    return
            held = row
            if "txt" in texts:  # the caption; of the .json the columns that are no text
                row = self._without_text(row)
                row["text"], codec = decode_text(texts["txt"], encoding)
                yield from codec.notes("x.txt")
        except (ValueError, RecursionError) as error:
            yield Problem(source, number, f"its text cannot be read: {error}")
            if not self.reading.captions:
                yield RawPair(source, number, image, ())
            return
        row = {**{name: value for name, value in row.items() if name != "image"}, "image": image}
        names = tuple(row)
        try:
            if names not in self._resolved:
                columns = {} if self.reading.columns is None else self.reading.columns
                if not isinstance(columns, Mapping):
                    raise ValueError("columns is a list; for shards it is a mapping, as {'text': 'title'}")
                wanted = {name: value for name, value in columns.items() if value in row or name == LABEL}
                reading = replace(self.reading, columns={**wanted, "image": "image"})
                self._resolved[names] = resolve_columns(names, reading)
                yield from guess_notes(self._resolved[names], reading, source)
        except ValueError as error:
            lone = "no .txt and no .json of this name: " if not texts else ""
            yield Problem(source, number, f"{lone}{error}")
            return
        yield make_pair(row, self._resolved[names], source, number, self.reading, held)

    def _without_text(self, row: dict) -> dict:
        named = self.reading.columns if isinstance(self.reading.columns, Mapping) else {}
        kept = {"image_id", *(named[name] for name in ("image_id", LABEL) if name in named)}
        return {name: value for name, value in row.items() if name in kept}

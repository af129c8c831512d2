"""Members of a tar archive, read as a stream, and whatever keeps one from being read.

`tarfile` ends in silence at a damaged header, at the end of the first of several archives written one behind another,
and where a file was cut between two members; its streams take only the first part of a file that was compressed in
parts. Here each of these is read on, or reported.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, Self, cast

from .listing import ignored_note, in_junk, kind_of
from .records import is_unicode
from .report import Note, Problem
from .text_files import other_archive

_errors: Any = tarfile  # type stubs leave the errors of its headers out
_PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


#: Larger members are no pictures and no captions; a compressed archive may name any size.
LARGEST_MEMBER = 1 << 30
#: So much emptiness ends an archive (32 MB), though others might follow.
_MOST_BLANKS = 1 << 16


@dataclass(frozen=True)
class TarMember:
    """One file of an archive.

    Args:
        name: without a leading `./` or `/`.
        offset: where its bytes begin, in an uncompressed local archive.
    """

    name: str
    data: bytes
    offset: int | None


class _Header(tarfile.TarInfo):
    """Tells its archive how reading a header ended; tarfile itself keeps that to itself."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:  # tarfile would go back in the file, for ever
            raise _errors.InvalidHeaderError("a negative size")
        return header

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        try:
            header = super().fromtarfile(archive)
        except _errors.EOFHeaderError:
            archive.ended = True
            archive.blanks += 1
            if archive.blanks > _MOST_BLANKS:
                raise _errors.EmptyHeaderError("nothing more") from None
            raise
        except _errors.InvalidHeaderError as error:
            if archive.offset == 0:
                raise tarfile.ReadError(f"no tar archive ({error})") from None
            archive.damaged = True
            raise
        except _errors.TruncatedHeaderError:
            archive.ended = False
            raise
        if header.size < 0:  # by an extended header
            raise tarfile.ReadError("a member of negative size")
        archive.ended, archive.blanks = False, 0
        return header


class _Archive(tarfile.TarFile):
    """ended: the last that was read is the mark of an archive's end. damaged: blocks were passed over. blanks: empty
    blocks since the last member."""

    tarinfo = _Header
    ended = False
    damaged = False
    blanks = 0


def read_members(path: str, wanted: Callable[[str], bool]) -> Iterator[TarMember | Problem]:
    """Files of a tar archive in order, those of whose name `wanted` is true; junk is left out, the rest is counted.

    Args:
        path: a file, plain or compressed by gzip, bzip2 or xz, or an address that fsspec opens.
    """
    ignored: Counter[str] = Counter()
    renamed = 0
    try:
        with _open_binary(path) as raw:
            file, packed = _unpacked(raw)
            again = not packed and "://" not in path
            # ignore_zeros: archives may lie one behind another
            with _Archive.open(fileobj=file, mode="r|", ignore_zeros=True) as archive:
                for header in archive:
                    name, guessed = _name(header.name)
                    if name is None:
                        yield Problem(f"{path}/{ascii(header.name)}", None, "the member's name is no UTF-8 and no GBK")
                        continue
                    if in_junk(name) or header.isdir():
                        continue
                    if not wanted(name):
                        ignored[kind_of(name)] += 1
                        continue
                    renamed += guessed
                    if not header.isfile():
                        yield Problem(f"{path}/{name}", None, _no_file(header))
                        continue
                    if header.size > LARGEST_MEMBER:
                        yield Problem(f"{path}/{name}", None, f"{header.size:,} bytes are too many for one member")
                        continue
                    data = cast(IO[bytes], archive.extractfile(header)).read()
                    yield TarMember(name, data, header.offset_data if again and not header.issparse() else None)
                for _ in range(64 if packed else 0):  # the check sum of a compressed file is at its end
                    if not file.read(1 << 20):
                        break
                if archive.damaged:
                    yield Problem(
                        path, None, "damaged blocks were passed over: members may be missing", incomplete=True
                    )
                if not archive.ended:
                    yield Problem(path, None, "the shard ends early: samples may be missing", incomplete=True)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        yield Problem(path, None, f"the shard cannot be read from here on: {error}", incomplete=True)
    yield from ignored_note(path, ignored)
    if renamed:
        yield Note(path, None, "names of members read as GBK", counts=((kind_of(path), renamed),))


def _name(name: str) -> tuple[str | None, bool]:
    """The member's name, and whether its encoding was guessed; None where it is in none that is known."""
    guessed = not is_unicode(name)
    if guessed:
        try:
            name = name.encode("utf-8", "surrogateescape").decode("gb18030")
        except UnicodeError:
            return None, True
    return PurePosixPath(name).as_posix().lstrip("/"), guessed


def _no_file(header: tarfile.TarInfo) -> str:
    if header.issym() or header.islnk():
        return f"a link to {header.linkname:.200}, which holds the bytes: store the file itself"
    return "no regular file"


def _open_binary(path: str) -> BinaryIO:
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


class _Whatever:
    """Reads what can be decompressed before the end of a file that was cut, where `read` would give nothing of it."""

    def __init__(self, file: Any) -> None:
        self.read = file.read1


def _unpacked(raw: Any) -> tuple[Any, bool]:
    """The stream, decompressed if its first bytes say that it is compressed, and whether it was.

    Raises:
        tarfile.ReadError: an archive of another kind.
    """
    stream = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
    head = stream.peek(8)[:8]
    if what := other_archive(head):
        raise tarfile.ReadError(f"it is {what}: unpack it, or write tar shards")
    kind = next((kind for magic, kind in _PACKED if head.startswith(magic)), None)
    return (stream, False) if kind is None else (_Whatever(kind(stream)), True)

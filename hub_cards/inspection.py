"""What a file holds that must not be published: secrets and pickles, also where its name or form hides them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".pyc", ".dill")
_KEY_FILES = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.env", "id_rsa*", "id_ed25519*", "id_ecdsa*"),
    *("*credentials*", "*secret*", "netrc", "token"),
)
#: What tokens and keys look like. Found ones are named by file and line and never printed.
SECRETS = {
    "Hugging Face token": rb"\b(?:hf_|api_org_)[A-Za-z0-9]{30,200}\b",
    "GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255})\b",
    "GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,255}\b",
    "PyPI token": rb"\bpypi-[A-Za-z0-9_-]{50,255}\b",
    "npm token": rb"\bnpm_[A-Za-z0-9]{36}\b",
    "AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "Alibaba Cloud key": rb"\bLTAI[0-9A-Za-z]{12,26}\b",
    "Tencent Cloud key": rb"\bAKID[0-9A-Za-z]{32}\b",
    "Google key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "API key": rb"\b(?:sk|r8|pk_live|sk_live)[-_][A-Za-z0-9_-]{32,255}\b",
    "Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,255}\b",
    "JSON web token": rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "private key": rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
    "password in an address": rb"[a-z]://[^\s/:@\x00-\x20\x7f-\xff]{1,100}:[^\s/:@\x00-\x20\x7f-\xff]{1,100}@[A-Za-z0-9]",
    "key": rb"(?i:\b(?:api|secret|access|private)[_-]?key)[\"']?\s{0,5}[:=]\s{0,5}[\"'][A-Za-z0-9+/_.=-]{16,255}[\"']",
}
_SECRET = re.compile(b"|".join(b"(?P<k%d>%s)" % (place, pattern) for place, pattern in enumerate(SECRETS.values())))
#: Every secret holds one of these, written small; only around them is looked closely.
_SIGNS = (
    *(b"hf_", b"api_org_", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_", b"glpat-", b"pypi-", b"npm_"),
    *(b"akia", b"asia", b"ltai", b"akid", b"aiza", b"sk-", b"sk_", b"r8-", b"r8_", b"pk_live", b"xox", b"eyj"),
    *(b"private key", b"://", b"key"),
)
_PIECE, _OVERLAP = 1 << 20, 1 << 10
#: Unpacked, together; an archive beyond it is refused, not trusted.
_MOST_UNPACKED = 1 << 30
_MOST_NESTED = 4
_PICKLE = "a pickle, which runs code when it is loaded: save weights as safetensors, or --exclude it"
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-fA-F]{2})|x([0-9a-fA-F]{2})|(/))")
_UNREADABLE = {b"7z\xbc\xaf\x27\x1c": "7z", b"\x28\xb5\x2f\xfd": "Zstandard", b"Rar!\x1a\x07": "RAR"}
_CODE_OPCODES = {
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "OBJ",
    "REDUCE",
    "NEWOBJ",
    "NEWOBJ_EX",
    "BUILD",
    "EXT1",
    "EXT2",
    "EXT4",
}


def problems_of(path: Path, name: str) -> list[str]:
    """Why a file must not be published, each with its name in the repository; [] where it may be.

    Text is searched in UTF-8, UTF-16 and UTF-32 and with the escapes of JSON and YAML undone, binary files throughout,
    archives and compressed files unpacked, of safetensors the header (what follows it are numbers).
    """
    if not path.is_file():
        return [f"{name}: neither a file nor a folder: delete it, or --exclude it"]
    found = _Findings(name)
    if kind := _secret_in(name.encode())[0]:
        return [f"a file name looks like it holds a {kind}: rename it, and revoke it if it is real"]
    if any(fnmatch(path.name.lower(), pattern) for pattern in _KEY_FILES):
        return [f"{name}: looks like a file of keys: delete it, or --exclude it"]
    with path.open("rb") as file:
        try:
            found.look(file, path.stat().st_size, path.name, "", 0)
        except _TooLargeError:
            found.add(
                "", f"unpacks to more than {_MOST_UNPACKED >> 30} GB, which is not searched: unpack it, or --exclude it"
            )
    return found.problems


class _TooLargeError(Exception):
    """An archive unpacks to more than is looked into."""


class _Findings:
    """What is found in one file and in what it packs."""

    def __init__(self, name: str) -> None:
        self.name, self.unpacked = name, 0
        self.problems: list[str] = []

    def add(self, where: str, problem: str) -> None:
        text = f"{self.name}{where}: {problem}"
        if text not in self.problems:
            self.problems.append(text)

    def look(self, file: IO[bytes], size: int, name: str, within: str, depth: int) -> None:
        """Search one stream, and what is packed in it.

        Args:
            name: of the file or member.
            within: how a problem names the member.
            depth: archives around it.
        """
        start = file.read(512)
        if name.lower().endswith(_PICKLE_SUFFIXES) or _is_pickle(file, start):
            self.add(within, _PICKLE)
            return
        for sign, kind in _UNREADABLE.items():
            if start.startswith(sign):
                self.add(within, f"a {kind} archive, which is not searched: unpack it, or --exclude it")
        length = _header_length(file, start, size) if name.lower().endswith(".safetensors") else None
        if name.lower().endswith(".safetensors") and length is None:
            self.add(within, "no whole safetensors file: save the weights again, or --exclude it")
        self._search(file, length or size, within)
        if length is None:
            self._unpack(file, start, within, depth)

    def _search(self, file: IO[bytes], size: int, within: str) -> None:
        file.seek(0)
        before, line, at = b"", 1, 0
        is_text = b"\0" not in file.read(8192)
        file.seek(0)
        while at < size and (piece := file.read(min(_PIECE, size - at))):
            window = before + piece
            kind, place = _secret_in(window)
            if kind is not None:
                where = f":{line + window[: place or 0].count(10)}" if is_text and place is not None else ""
                self.add(within + where, f"looks like a {kind}: remove it, and revoke it if it is real")
            at += len(piece)
            line += window[: max(len(window) - _OVERLAP, 0)].count(10)
            before = window[-_OVERLAP:]

    def _unpack(self, file: IO[bytes], start: bytes, within: str, depth: int) -> None:
        file.seek(0)
        for name, member in _members(file, start):
            if depth == _MOST_NESTED:
                self.add(within, f"archives within archives, more than {_MOST_NESTED} deep: unpack it, or --exclude it")
                return
            inner = f"{within}, in {name}" if name else within
            if member is None:
                self.add(within, "an archive that is damaged or locked, and not searched: unpack it, or --exclude it")
                return
            if name and _secret_in(name.encode())[0]:
                self.add(within, "the name of a member looks like a secret: remove it, and revoke it if it is real")
                continue
            content = member.read(_MOST_UNPACKED - self.unpacked + 1)
            self.unpacked += len(content)
            if self.unpacked > _MOST_UNPACKED:
                raise _TooLargeError
            self.look(io.BytesIO(content), len(content), name or "", inner, depth + 1)


def _secret_in(content: bytes) -> tuple[str | None, int | None]:
    """The kind of the first secret, and its place; None for the place where the bytes had to be rewritten."""
    forms, zeros = [content], content.count(b"\0")
    if zeros:  # UTF-16 and UTF-32 of ASCII
        forms.append(content.replace(b"\0", b""))
    if b"\\" in content and (zeros == 0 or zeros > len(content) // 5):  # a text
        forms.append(_ESCAPE.sub(_unescaped, forms[-1]))
    for number, form in enumerate(forms):
        small = form.lower()
        for sign in _SIGNS:
            at = small.find(sign)
            while at >= 0:
                begin = max(at - _OVERLAP // 4, 0)
                if match := _SECRET.search(form, begin, at + _OVERLAP):
                    return list(SECRETS)[int(str(match.lastgroup)[1:])], match.start() if number == 0 else None
                at = small.find(sign, at + 1)
    return None, None


def _unescaped(match: re.Match) -> bytes:
    number = match[1] or match[2]
    return match[3] if number is None else bytes([int(number, 16)])


def _is_pickle(file: IO[bytes], start: bytes) -> bool:
    """By content: protocols 2 and later by their first bytes, 0 and 1 where the opcodes parse and call something; or
    numpy's file of objects."""
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return True
    if start.startswith(b"\x93NUMPY"):
        return bool(re.search(rb"'descr':\s*(?:'\|?O|\[.*'\|?O)", start))
    if start[:1] not in b"(]}cilKIMFSUVXN)\x8c\x95":
        return False
    file.seek(0)
    called = False
    try:
        for opcode, value, _ in pickletools.genops(file.read(_PIECE)):
            if opcode.name in ("GLOBAL", "INST") and not re.fullmatch(r"[\w.]+ [\w.]+", str(value)):
                return False  # a text whose first letter is an opcode
            called = called or opcode.name in _CODE_OPCODES
            if opcode.name == "STOP":
                return called
    except Exception:  # whatever other bytes make of it
        return False
    return False


def _header_length(file: IO[bytes], start: bytes, size: int) -> int | None:
    """Bytes before the numbers of a safetensors file; None where it is none, or holds more or less than its header
    says."""
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= size - 8:
        return None
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return length + 8 if length + 8 + max(ends, default=0) == size else None


def _members(file: IO[bytes], start: bytes) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of what an archive or a compressed file holds; None as content where it cannot be read."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir():
                        with archive.open(entry) as packed:
                            yield entry.filename, packed
            return
        file.seek(0)
        openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
        if (opened := openers.get(start[:2])) and not (start[:2] == b"BZ" and start[2:3] != b"h"):
            with opened(file) as member:
                yield "", member
        elif start[:1] == b"x" and start[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
            yield "", io.BytesIO(zlib.decompressobj().decompress(file.read(), _MOST_UNPACKED))
        elif start[257:262] == b"ustar" or _is_old_tar(file):
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                for info in archive:
                    if info.isfile() and (member := archive.extractfile(info)) is not None:
                        yield info.name, member
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, zlib.error) and start[:1] == b"x":
            return  # two bytes like zlib's, and something else
        yield "", None
    except (zipfile.BadZipFile, tarfile.TarError):
        yield "", None


def _is_old_tar(file: IO[bytes]) -> bool:
    file.seek(0)
    block = file.read(512)
    if len(block) < 512 or not re.fullmatch(rb"[0-7 ]{6,7}[\0 ]{1,2}", block[148:156]):
        return False
    return int(block[148:156].strip(b"\0 ") or b"0", 8) == sum(block) - sum(block[148:156]) + 8 * 32


__all__ = ["SECRETS", "problems_of"]

"""Digests of files."""

import hashlib
from os import PathLike


def digest_of_file(path: str | PathLike, algorithm: str | None = None) -> str:
    """Of a file, read piece by piece: blake2b of 16 bytes, or an algorithm of `hashlib` by its name."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm or (lambda: hashlib.blake2b(digest_size=16))).hexdigest()


__all__ = ["digest_of_file"]

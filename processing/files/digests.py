"""Digests of files."""

import hashlib
from pathlib import Path

_CHUNK = 1 << 22


def digest_of_file(path: Path) -> str:
    """blake2b of a file, read piece by piece."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()

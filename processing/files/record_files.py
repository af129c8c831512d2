"""Records of one size, such as what towers made of each picture: in files of equal numbers of them, each with its
checksum, written at their places and read by place."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: The field of a record that holds its checksum, the last.
_CHECKSUM = ("crc", "<u4", ())


def record_layout(packed: Mapping[str, Tensor]) -> tuple[tuple, ...]:
    """The fields of a record that holds one of packed tensors (I, …) of some, as NumPy describes them."""
    arrays = {name: packed[name].numpy() for name in sorted(packed)}
    return (*((name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()), _CHECKSUM)


def record_dtype(layout: tuple[tuple, ...]) -> np.dtype:
    """The type of records."""
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in layout])


class RecordsWriter:
    """Puts records at their places.

    Args:
        layout: their fields, of `record_layout`; () where there are none.
        per_file: records of a file.
        path: where the file of a number lies.
    """

    def __init__(self, layout: tuple[tuple, ...], per_file: int, path: Callable[[int], Path]) -> None:
        self.layout, self.per_file, self.path = layout, per_file, path
        self.dtype = record_dtype(layout)
        self._written: set[Path] = set()

    def write(self, slot: int, packed: Mapping[str, Tensor]) -> None:
        """Write packed tensors (I, …) as records from `slot` on."""
        records = np.empty(len(next(iter(packed.values()))), self.dtype)
        for name, tensor in packed.items():
            records[name] = tensor.numpy()
        records["crc"] = checksums(records)
        self.write_records(slot, records)

    def write_records(self, slot: int, records: np.ndarray) -> None:
        """Write whole records from `slot` on."""
        while len(records):
            number, place = divmod(slot, self.per_file)
            now, records = np.split(records, [self.per_file - place])
            path = self.path(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                file.seek(place * self.dtype.itemsize)
                file.write(now.tobytes())
            self._written.add(path)
            slot += len(now)

    def sync(self) -> None:
        """Have all that was written on the disk."""
        for path in self._written:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._written.clear()


def read_records(dtype: np.dtype, per_file: int, data: Callable[[int], Any], places: np.ndarray) -> np.ndarray:
    """Records at some places, in the order of these; whether they are as they were written, `are_damaged` says.

    Args:
        dtype: of `record_dtype`.
        per_file: records of a file.
        data: the content of the file of a number.
        places: (I,) int64.
    """
    out = np.empty(len(places), dtype)
    owners, inside = np.divmod(places, per_file)
    for number in np.unique(owners):
        chosen = owners == number
        out[chosen] = np.frombuffer(data(int(number)), dtype)[inside[chosen]]
    return out


def are_damaged(records: np.ndarray) -> np.ndarray:
    """(I,) bool, which of some records have another checksum than they were written with."""
    return np.array(checksums(records), dtype=np.uint32) != records["crc"]


def checksums(records: np.ndarray) -> list[int]:
    """CRC-32 of each record but its last field."""
    return [zlib.crc32(record[:-4].data) for record in records.view(np.uint8).reshape(len(records), -1)]


__all__ = ["RecordsWriter", "are_damaged", "checksums", "read_records", "record_dtype", "record_layout"]

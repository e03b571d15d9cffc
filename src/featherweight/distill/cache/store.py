"""Rows of numbers on disk: written once, in any order, by any number of processes, and read as memory.

    done.bin        one CRC-32 a row, 0 for a row that is not there yet
    <stream>.bin    n · width numbers a row, rows one after the other; n is the row's units or its tokens

A row is written under a lock, numbers first, then its checksum; the first look of a process at a row computes the
checksum again. So a crash loses at most the row it fell into, and a damaged row is found, told of and written anew.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy
from numpy.typing import NDArray

from featherweight.core.errors import FeatherweightError

DONE, LOCK = "done.bin", ".lock"
ENTRY = numpy.dtype([("key", "V16"), ("unit", "<i4"), ("token", "<i4")])
NUMBERS = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2", "int32": "<i4"}  # bf16 as its bits: numpy has none


@dataclass(frozen=True)
class Stream:
    """One tensor of every row: (n, width), n its units or its tokens (`per`)."""

    name: str
    per: str  # "unit" | "token"
    width: int
    dtype: str

    @property
    def item(self) -> int:
        """Bytes of one of the n."""
        return self.width * numpy.dtype(NUMBERS[self.dtype]).itemsize


def table(rows: Mapping[bytes, tuple[int, int]]) -> NDArray[Any]:
    """key -> (units, tokens) as the entries of rows.bin."""
    return numpy.array([(key, *rows[key]) for key in sorted(rows)], ENTRY)


def size(rows: NDArray[Any], streams: Sequence[Stream]) -> int:
    """Bytes that a store takes."""
    return rows.nbytes + 4 * len(rows) + sum(int(rows[s.per].sum(dtype="i8")) * s.item for s in streams)


class Store:
    """An open store. Row numbers are places in rows.bin; `number` finds them by key."""

    def __init__(self, folder: Path, rows: NDArray[Any], streams: Sequence[Stream], say: Callable[[str], None]):
        self.folder, self.streams, self.say = folder, tuple(streams), say
        self.number = {bytes(key): i for i, key in enumerate(rows["key"])}
        self.count = {per: rows[per] for per in ("unit", "token")}
        self.start = {per: numpy.concatenate([[0], numpy.cumsum(rows[per], dtype="i8")]) for per in self.count}
        self.files = {s.name: os.open(folder / f"{s.name}.bin", os.O_RDWR) for s in streams}
        self.flags = os.open(folder / DONE, os.O_RDWR)
        self.sums = numpy.memmap(folder / DONE, "<u4", "r")
        self.maps = {s.name: mapped(folder / f"{s.name}.bin", NUMBERS[s.dtype]) for s in streams}
        self.good, self.bad = bytearray(len(rows)), set[int]()

    def __del__(self) -> None:
        for handle in (*getattr(self, "files", {}).values(), getattr(self, "flags", -1)):
            if handle >= 0:
                os.close(handle)

    def __len__(self) -> int:
        return len(self.good)

    @property
    def finished(self) -> int:
        """Rows that are there."""
        return int(numpy.count_nonzero(self.sums))

    def has(self, row: int) -> bool:
        """Whether a row is there, whole."""
        if not self.good[row] and self.sums[row] and row not in self.bad:
            if self.sums[row] == (checksum(self.read(s, row).tobytes() for s in self.streams)):
                self.good[row] = 1
            else:
                self.bad.add(row)
                self.say(f"a damaged row of the teacher cache is computed again ({self.folder})")
        return bool(self.good[row])

    def read(self, stream: Stream, row: int) -> NDArray[Any]:
        """(n, width) of a row, a view of the file; bf16 as its bits."""
        first, last = (int(self.start[stream.per][i]) * stream.width for i in (row, row + 1))
        found: NDArray[Any] = self.maps[stream.name][first:last].reshape(-1, stream.width)
        return found

    def write(self, rows: Mapping[int, Mapping[str, bytes]]) -> None:
        """Rows by number, each with the bytes of every stream; one that another process wrote first is left alone.
        Raises FeatherweightError where the disk does not take them."""
        try:
            with locked(self.folder):
                for row, data in rows.items():
                    if not self.sums[row] or row in self.bad:
                        self.put(row, data)
        except OSError as error:
            raise FeatherweightError(f"{self.folder}: the teacher cache cannot be written ({error.strerror})") from None

    def put(self, row: int, data: Mapping[str, bytes]) -> None:
        os.pwrite(self.flags, bytes(4), 4 * row)
        for s in self.streams:
            expected = int(self.count[s.per][row]) * s.item
            if len(data[s.name]) != expected:
                raise FeatherweightError(f"{s.name} of a row has {len(data[s.name])} bytes in place of {expected}")
            whole(self.files[s.name], data[s.name], int(self.start[s.per][row]) * s.item)
        os.pwrite(self.flags, checksum(data[s.name] for s in self.streams).to_bytes(4, "little"), 4 * row)
        self.bad.discard(row)
        self.good[row] = 1


def mapped(path: Path, dtype: str) -> NDArray[Any]:
    """A file as an array, an empty one too."""
    return numpy.memmap(path, dtype, "r") if path.stat().st_size else numpy.empty(0, dtype)


def checksum(parts: Iterator[bytes]) -> int:
    """CRC-32 of some bytes, never 0."""
    total = 0
    for part in parts:
        total = crc32(part, total)
    return total or 1


def whole(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's for a moment; others wait."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

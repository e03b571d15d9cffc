"""One run per output folder: a lock that ends with its process, however that ends.

The kernel holds the lock (`flock`) on `.lock`, and drops it when the process dies: a file that a killed run left
behind stops nobody. The pid in it is for people.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featherweight.core.errors import InputError, Problem

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this run's until the end. Raises InputError where another run is at work, or nothing can be
    written."""
    path = folder / LOCK
    handle = acquired(folder, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked: whoever opened it meanwhile sees that it is not the path's file
        os.close(handle)


def acquired(folder: Path, path: Path) -> int:
    """The open, locked file; making it is the trial of whether the folder can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = taken(path)
            if current(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                return handle
            os.close(handle)
    except OSError as error:
        raise InputError(Problem(f"the output folder cannot be written ({error.strerror})", str(folder),
                                 fix="choose another output")) from error  # fmt: skip


def taken(path: Path) -> int:
    """Open and lock; the run that has the lock is named."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise InputError(Problem("another run is writing to the output folder", str(path.parent), got=f"process {pid}",
                                 fix="wait for it, stop it, or choose another output")) from None  # fmt: skip
    except OSError:
        os.close(handle)
        raise
    return handle


def current(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: its former owner may have removed it since."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False

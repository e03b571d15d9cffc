"""A file or folder that is there whole or not at all: written beside its place, then moved into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Where to write what shall be at `path`; moved there when the block ends, gone where it fails.

    A file that is there is replaced, and so is an empty folder; one that holds something raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    discard(beside)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        discard(beside)


def write_text(path: Path, text: str) -> None:
    """A text in UTF-8, on the disk before it takes its place: a reader never sees half of it."""
    with staged(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The folder of a teacher cache: found as it was left, made, mended, or refused.

    manifest.json   what the rows are of and which streams they have; written last: without it there is no cache
    rows.bin        one entry a row, sorted by key: key, units, tokens
    done.bin, <stream>.bin     see store.py

Space is taken on disk before the first row is written: a disk that is too full is found out at once.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featherweight.core.errors import InputError, Problem
from featherweight.distill.cache.store import DONE, LOCK, Store, Stream, locked, size
from featherweight.files.staged import write_text
from featherweight.quant.report import size as amount

SCHEMA = 1
MANIFEST, ROWS = "manifest.json", "rows.bin"
AGAIN = 'give another folder, or changed="recompute" to make this one anew'
ZEROS = 1 << 24  # bytes at a time where the system cannot reserve


def opened(folder: Path, about: Mapping[str, Any], rows: NDArray[Any], streams: Sequence[Stream], recompute: bool,
           say: Callable[[str], None]) -> Store:  # fmt: skip
    """The store of a folder, made where there is none.

    `about` is what must be equal for it to be used, beside rows and streams. Raises InputError over everything that
    differs, unless `recompute` says to begin anew; for a folder of something else, and where there is no room.
    """
    now = {**about, "rows": sha256(rows.tobytes()).hexdigest()[:16], "kept": {s.name: asdict(s) for s in streams}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            wrong = differences(folder, now)
            if wrong and not recompute:
                raise InputError(*wrong)
            if wrong:
                say(f"the teacher cache is made anew: {'; '.join(p.what for p in wrong)}")
            if wrong or not (folder / MANIFEST).exists():
                create(folder, now, rows, streams, say)
            else:
                mend(folder, rows, streams, say)
    except OSError as error:
        raise InputError(Problem("the teacher cache cannot be written", str(folder), got=error.strerror or "",
                                 fix="give another folder")) from error  # fmt: skip
    return Store(folder, rows, streams, say)


def differences(folder: Path, now: Mapping[str, Any]) -> list[Problem]:
    """What is in the folder and not what is wanted now; nothing where it is empty or was never finished."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    foreign = {n for n in names if not n.endswith(".bin") and n != MANIFEST and not n.startswith(f".{MANIFEST}")}
    if foreign:
        raise InputError(Problem("the folder holds something else than a teacher cache", str(folder),
                                 got=", ".join(sorted(foreign)[:3]), fix="give another folder"))  # fmt: skip
    if MANIFEST not in names:
        return []
    try:
        then = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made = then["schema"], then["about"]
    except (ValueError, KeyError, TypeError):
        return [Problem("the manifest of the teacher cache is damaged", str(folder / MANIFEST), fix=AGAIN)]
    if made[0] != SCHEMA:
        return [Problem("the teacher cache has another format", str(folder), str(SCHEMA), str(made[0]), AGAIN)]
    said = json.loads(json.dumps(now))
    return [Problem(f"the teacher cache was made with another {part}", str(folder), shown(made[1].get(part)),
                    shown(said.get(part)), AGAIN)
            for part in dict.fromkeys([*made[1], *said]) if made[1].get(part) != said.get(part)]  # fmt: skip


def shown(value: Any) -> str:
    """A part of the manifest on one line: of streams their names, widths and dtypes."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {s['width']} {s['dtype']}" for name, s in value.items())


def create(folder: Path, about: Mapping[str, Any], rows: NDArray[Any], streams: Sequence[Stream],
           say: Callable[[str], None]) -> None:  # fmt: skip
    """All files at full size, the manifest last. Raises InputError where there is no room, leaving nothing behind."""
    (folder / MANIFEST).unlink(missing_ok=True)
    clear(folder)
    need, free = size(rows, streams), shutil.disk_usage(folder).free
    say(f"teacher cache: {amount(need)} in {folder} for {len(rows):,} rows ({listing(streams)}); {amount(free)} free")
    if need > free:
        raise InputError(no_room(folder, need, free))
    try:
        (folder / ROWS).write_bytes(rows.tobytes())
        reserve(folder / DONE, 4 * len(rows))
        for s in streams:
            reserve(folder / f"{s.name}.bin", int(rows[s.per].sum(dtype="i8")) * s.item)
    except OSError as error:
        clear(folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(no_room(folder, need, free)) from error
        raise
    write_text(folder / MANIFEST, json.dumps({"schema": SCHEMA, "about": about}, indent=1) + "\n")


def listing(streams: Sequence[Stream]) -> str:
    """What is kept, and how much of it: `hidden.4: 128 B a token; logits: 8 B a unit`."""
    mine = {per: [s for s in streams if s.per == per] for per in ("token", "unit")}
    return "; ".join(f"{', '.join(s.name for s in some)}: {amount(sum(s.item for s in some))} a {per}"
                     for per, some in mine.items() if some)  # fmt: skip


def clear(folder: Path) -> None:
    """Remove rows; a process that has them open goes on with what it has."""
    for path in folder.glob("*.bin"):
        path.unlink()


def reserve(path: Path, length: int) -> None:
    """A file of zeros whose place on disk is taken."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if length and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, length)
        elif length:
            os.lseek(handle, 0, os.SEEK_END)
            while (has := os.fstat(handle).st_size) < length:
                os.write(handle, bytes(min(ZEROS, length - has)))
    finally:
        os.close(handle)


def mend(folder: Path, rows: NDArray[Any], streams: Sequence[Stream], say: Callable[[str], None]) -> None:
    """Files that were cut get their length back: checksums tell which rows are gone."""
    wanted = {DONE: 4 * len(rows)} | {f"{s.name}.bin": int(rows[s.per].sum(dtype="i8")) * s.item for s in streams}
    for name, length in wanted.items():
        has = (folder / name).stat().st_size if (folder / name).exists() else 0
        if has < length:
            say(f"{folder / name} has {has:,} of {length:,} bytes: rows that are not whole are computed again")
            reserve(folder / name, length)


def no_room(folder: Path, need: int, free: int) -> Problem:
    fix = "another folder, top=50 (the most probable words alone), or dtype='bf16'"
    return Problem("there is no room for the teacher cache", str(folder), f"{amount(need)} free", amount(free), fix)

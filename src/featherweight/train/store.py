"""Run checkpoints: directories that are whole or not there.

    checkpoints/.partial-step-40-<pid>/    every file written and fsynced, manifest.json (sizes, SHA-256) last
    checkpoints/step-40/                   the same after fsync(directory), rename, fsync(parent)

`latest` is computed, never stored: the newest directory whose manifest holds. Tensors are safetensors, all else JSON.
"""

import errno
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import FeatherweightError, Problem

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial-"
SLACK = 1 << 20  # bytes of JSON, headers and directory blocks beyond the tensors


class CheckpointError(FeatherweightError):
    """A checkpoint could not be written or read; earlier ones are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `files` maps a name without suffix to tensors (by key) or a JSON object; `skipped` lists
    the newer ones that were found damaged, each with what is wrong."""

    path: Path
    step: int
    files: dict[str, Any]
    skipped: tuple[Problem, ...] = ()


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, "Tensor"]], objects: Mapping[str, Any],
         keep: int = 2, best: int | None = None) -> Path:  # fmt: skip
    """Write `folder/step-<step>`, then drop all but the `keep` newest checkpoints and the one of step `best`.

    Returns its directory; one that is already there and good is left alone (equal steps hold equal states).
    Raises CheckpointError when the disk is full, read-only or failing: nothing of the attempt is then visible.
    """
    final = folder / f"step-{step}"
    partial = folder / f"{PARTIAL}step-{step}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        if final.exists() and not verify(final):
            return final
        room(folder, sum(t.nbytes for group in tensors.values() for t in group.values()) + SLACK)
        write(partial, step, tensors, objects)
        publish(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise failed(final, error) from error
    retain(folder, final, keep, best)
    return final


def write(partial: Path, step: int, tensors: Mapping[str, Mapping[str, "Tensor"]], objects: Mapping[str, Any]) -> None:
    """All files, durable, the manifest last: without it the directory is no checkpoint."""
    from featherweight.checkpoint.files import serialized

    partial.mkdir()
    entries = {}
    for name, group in tensors.items():
        entries[f"{name}.safetensors"] = put(partial / f"{name}.safetensors", serialized(group, {}))
    for name, value in objects.items():
        entries[f"{name}.json"] = put(partial / f"{name}.json", [encode(value)])
    put(partial / MANIFEST, [encode({"schema": SCHEMA, "step": step, "files": entries})])
    sync(partial)


def encode(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def bytes_in(part: Any) -> int:
    return memoryview(part).nbytes


def put(path: Path, parts: Iterable[Any]) -> dict[str, int | str]:
    """Write and fsync one file; its size and hash for the manifest (of what was meant, not of what arrived)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    size, digest = 0, sha256()
    try:
        for part in filter(bytes_in, parts):  # arrays too: a view of none cannot be cast
            view = memoryview(part).cast("B")
            size += len(view)
            digest.update(view)
            while view:
                view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"size": size, "sha256": digest.hexdigest()}


def sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, final: Path) -> None:
    """The one moment when the checkpoint appears. A damaged one of the same step steps aside first."""
    if final.exists():
        os.rename(final, final.with_name(f"{PARTIAL}damaged-{final.name}-{os.getpid()}"))
    os.rename(partial, final)
    try:
        sync(final.parent)
    except OSError as error:
        raise CheckpointError(f"{final}: complete, but the disk did not confirm it ({error.strerror}): "
                              "it may not survive a loss of power") from error  # fmt: skip


def room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{need:,} bytes needed, {free:,} free")


def failed(final: Path, error: OSError) -> CheckpointError:
    why = f"{reason(error)} ({error.strerror})"
    return CheckpointError(f"{final}: not written, {why}; earlier checkpoints are as they were")


def reason(error: OSError) -> str:
    """Why a disk does not take something, in words."""
    reasons = {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only",
               errno.EACCES: "no permission to write", errno.EDQUOT: "the disk quota is used up"}  # fmt: skip
    return reasons.get(error.errno or 0, "the disk failed")


def clean(folder: Path) -> None:
    """Remove what interrupted saves left behind."""
    for stray in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stray)


def retain(folder: Path, newest: Path, keep: int, best: int | None) -> None:
    """Delete old checkpoints, but none before the newest has been read back and found good."""
    if damage := verify(newest):
        raise CheckpointError(f"{newest}: written, but it does not read back: {damage}; no older one was deleted")
    kept = {newest, *[folder / f"step-{s}" for s in steps(folder)[:keep]], folder / f"step-{best}"}
    try:
        for step in steps(folder):
            old = folder / f"step-{step}"
            if old not in kept:
                doomed = folder / f"{PARTIAL}deleted-{old.name}-{os.getpid()}"
                os.rename(old, doomed)  # so that no half-deleted directory ever bears a checkpoint's name
                shutil.rmtree(doomed)
    except OSError as error:
        raise CheckpointError(f"{newest}: saved, but an old checkpoint could not be deleted ({error})") from error


def steps(folder: Path) -> list[int]:
    """Steps that have a directory, newest first; good or not."""
    names = [p.name.removeprefix("step-") for p in folder.glob("step-*") if p.is_dir()]
    return sorted((int(n) for n in names if n.isdecimal()), reverse=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest good checkpoint, verified and read, or None; `skipped` names the damaged newer ones."""
    skipped: list[Problem] = []
    for step in steps(folder):
        found = read(folder / f"step-{step}")
        if isinstance(found, Checkpoint):
            return Checkpoint(found.path, found.step, found.files, tuple(skipped))
        skipped.append(found)
    if skipped:
        raise CheckpointError("no good checkpoint is left:\n" + "\n".join(map(str, skipped)))
    return None


def read(path: Path) -> Checkpoint | Problem:
    """A checkpoint's content, or what is wrong with it. The pages that are hashed are those that are used."""
    files: dict[str, Any] = {}
    try:
        manifest = listing(path)
        for name, entry in manifest["files"].items():
            data = content(path, name, entry, mmap.ACCESS_COPY)
            files[Path(name).stem] = tensors_of(data) if name.endswith(".safetensors") else json.loads(bytes(data))
    except Damage as damage:
        return Problem(str(damage), str(path))
    return Checkpoint(path, manifest["step"], files)


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, empty when nothing is."""
    try:
        for name, entry in listing(path)["files"].items():
            content(path, name, entry)
    except Damage as damage:
        return str(damage)
    return ""


class Damage(Exception):
    """Why a directory is not a good checkpoint."""


def listing(path: Path) -> dict[str, Any]:
    """The manifest, checked for form: a checkpoint is input like any other."""
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
    except (OSError, ValueError) as error:
        raise Damage(f"no readable manifest ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise Damage(
            f"schema {manifest.get('schema') if isinstance(manifest, dict) else manifest!r}, expected {SCHEMA}"
        )
    files = manifest.get("files")
    if encode(manifest) != raw:
        raise Damage("the manifest is not as it was written")
    if manifest.get("step") != int(path.name.removeprefix("step-")) or not isinstance(files, dict) or not files:
        raise Damage("the manifest is not this directory's")
    if wrong := [n for n, e in files.items() if Path(n).name != n or not isinstance(e, dict)]:
        raise Damage(f"the manifest lists {wrong[0]!r}, which is no file of this directory")
    return manifest


def content(path: Path, name: str, entry: Mapping[str, Any], access: int = mmap.ACCESS_READ) -> memoryview:
    """A file's bytes, mapped, after size and hash were compared."""
    try:
        with (path / name).open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != entry.get("size"):
                raise Damage(f"{name} has {size} bytes, the manifest says {entry.get('size')}")
            data = memoryview(mmap.mmap(file.fileno(), size, access=access) if size else b"")
    except OSError as error:
        raise Damage(f"{name} cannot be read ({error.strerror})") from error
    if sha256(data).hexdigest() != entry.get("sha256"):
        raise Damage(f"{name} does not have the hash that the manifest gives")
    return data


def tensors_of(data: memoryview) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file that is known to be whole, over its bytes."""
    import torch

    from featherweight.checkpoint.files import DTYPES

    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for key, entry in json.loads(bytes(data[8:start])).items():
        if key == "__metadata__":
            continue
        piece, dtype = data[start:][slice(*entry["data_offsets"])], dtypes[entry["dtype"]]
        flat = torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
        found[key] = flat.view(entry["shape"])
    return found

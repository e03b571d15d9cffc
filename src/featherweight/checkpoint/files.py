"""Safetensors and JSON, strict: nothing half-written, nothing half-read, no pickle.

A write goes to a temporary file in the same folder, is fsynced and renamed; a read checks the header, every dtype and
that every value is finite. All that is wrong with a file is one InputError that names the file and its tensors.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featherweight.core.errors import FeatherweightError, InputError, Problem, raise_all

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "pytorch_adapter.bin", "pytorch_model.bin")
Writes = dict[Path, Callable[[str], None]]  # place -> what fills a file there
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises InputError for a missing, truncated or corrupt file and for tensors that are not finite floats.
    """
    path = Path(path)
    present(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            Problem(
                "not a whole safetensors file",
                str(path),
                got=f"{path.stat().st_size:,} bytes: {error}",
                fix="save or copy the adapter again",
            )
        ) from error
    raise_all(unsound(tensors, path.name))
    return tensors, metadata


def present(path: Path) -> None:
    """Raise InputError where `path` is no file, with the way out where only pickled weights are there."""
    if path.is_file():
        return
    pickled = [name for name in PICKLES if (path.parent / name).is_file()]
    if pickled:
        raise InputError(
            Problem(
                "weights are a pickle, which is never read",
                str(path.parent / pickled[0]),
                expected=path.name,
                fix="where you trust it: safetensors.torch.save_file(torch.load(OLD, weights_only=True), NEW)",
            )
        )
    there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else None
    got = "no such folder" if there is None else f"a folder with {', '.join(there[:8]) or 'nothing in it'}"
    raise InputError(Problem("no such file", str(path), got=got, fix="give a folder that holds an adapter"))


def unsound(tensors: Mapping[str, Tensor], where: str) -> Iterator[Problem]:
    """What makes tensors unusable as parameters: a dtype that is no float, NaN and infinity."""
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            yield Problem("wrong dtype", f"{where}:{key}", "a float tensor", str(tensor.dtype).removeprefix("torch."))
        elif not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            yield Problem(
                "values that are not finite", f"{where}:{key}", got=f"{bad:,} of {tensor.numel():,} NaN or inf"
            )


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically. Raises InputError for values that are not finite or a folder that takes no file."""
    atomic(tensor_file(path, tensors, metadata))


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write both files of an adapter: whole on disk under temporary names first, then renamed one after the other."""
    atomic(tensor_file(folder / WEIGHTS, tensors, metadata) | json_file(folder / CONFIG, config))


def tensor_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Writes:
    path = Path(path)
    raise_all(unsound(tensors, path.name))
    whole = {key: tensor.detach().to("cpu").contiguous().clone() for key, tensor in tensors.items()}
    info = {"format": "pt"} | dict(metadata)

    def write(temporary: str) -> None:
        save_file(whole, temporary, metadata=info)
        steady(temporary)

    return {path: write}


def steady(path: str) -> None:
    """Sort the metadata in a safetensors header, which come in random order: equal adapters, equal bytes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        info = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
        text = json.dumps(info | header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise FeatherweightError(f"{path}: the header grew from {size} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(size))


def json_file(path: str | Path, form: Mapping[str, Any]) -> Writes:
    text = json.dumps(form, indent=2, sort_keys=True) + "\n"
    return {Path(path): lambda temporary: put(temporary, text)}


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises InputError with file, line and column."""
    path = Path(path)
    present(path)
    try:
        form = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(Problem("not JSON", f"{path}:{error.lineno}:{error.colno}", got=error.msg)) from error
    except UnicodeDecodeError as error:
        raise InputError(Problem("not UTF-8", str(path), got=str(error))) from error
    if not isinstance(form, dict):
        raise InputError(Problem("not a JSON object", str(path), got=type(form).__name__))
    return form


def write_json(path: str | Path, form: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys sorted, indented by two: peft's style."""
    atomic(json_file(path, form))


def put(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def atomic(writes: Writes) -> None:
    """Let each write fill a temporary file beside its place and fsync it; when all are whole, rename them into place.

    On failure the places hold what they held, and no temporary file is left.
    """
    staged: dict[Path, str] = {}
    try:
        for path, write in writes.items():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, staged[path] = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
                os.close(handle)
                write(staged[path])
                os.chmod(staged[path], 0o666 & ~umask())
                sync(staged[path])
        for path, temporary in staged.items():
            with writing(path):
                os.replace(temporary, path)
                sync(str(path.parent))
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says about `path` into an InputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise InputError(
            Problem(
                "cannot be written",
                str(path),
                got=reason,
                fix="give another folder, or make room and allow writing; nothing was changed",
            )
        ) from error


def sync(path: str) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The process's umask: mkstemp makes private files, an adapter is as public as any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

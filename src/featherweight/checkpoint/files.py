"""Safetensors and JSON, strict: nothing half-written, nothing half-read, no pickle.

A write goes to a temporary file in the same folder and is renamed, so that a stopped process leaves the former file or
the new one; a `durable` one is fsynced first, so that a machine that loses power does too. A read checks the header,
every dtype and that every value is finite. All that is wrong with a file is one InputError that names the file and its
tensors.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featherweight.core.errors import InputError, Problem, raise_all

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "pytorch_adapter.bin", "pytorch_model.bin")
VECTOR = 1024  # parts that one call takes: IOV_MAX of Linux and macOS
Writes = dict[Path, Callable[[str], None]]  # place -> what fills a file there
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32"}  # of places in a tensor, under names that end in `indices`
ORDER = (torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16)
SMALL = {torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
DTYPES = {dtype: (FLOATS | INTEGERS)[dtype] for dtype in ORDER} | SMALL
TYPES = {name: dtype for dtype, name in DTYPES.items()}


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises InputError for a missing, truncated or corrupt file and for tensors that are not finite floats.
    """
    path = Path(path)
    present(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # that library is the judge of a file's form
            metadata = dict(file.metadata() or {})
            tensors = filled(path, file)
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


def filled(path: Path, file: Any) -> dict[str, Tensor]:
    """The tensors of a sound file, in memory of their own that the system fills: the library's are views of the file,
    and change with it. A sound file has them one behind the other, without gaps.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        form = json.loads(os.read(handle, int.from_bytes(os.read(handle, 8), "little")))
        form.pop("__metadata__", None)
        tensors = {key: room(of) for key, of in sorted(form.items(), key=lambda item: item[1]["data_offsets"])}
        through(os.readv, handle, [raw(t) for t in tensors.values()])
    finally:
        os.close(handle)
    return {key: tensors[key] if form[key]["dtype"] in TYPES else file.get_tensor(key) for key in sorted(form)}


def room(of: Mapping[str, Any]) -> Tensor:
    """Memory for a tensor of a file; bytes where its dtype is none of ours."""
    start, end = of["data_offsets"]
    dtype = TYPES.get(of["dtype"])
    return torch.empty(end - start, dtype=torch.uint8) if dtype is None else torch.empty(of["shape"], dtype=dtype)


def raw(tensor: Tensor) -> Any:
    """The memory of a tensor that is whole and on the CPU, as an array."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


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
    if sound(tensors.values()):
        return
    for key, tensor in tensors.items():
        if tensor.dtype in INTEGERS and key.endswith("indices"):
            continue
        if tensor.dtype not in FLOATS:
            yield Problem("wrong dtype", f"{where}:{key}", "a float tensor", str(tensor.dtype).removeprefix("torch."))
        elif not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            yield Problem(
                "values that are not finite", f"{where}:{key}", got=f"{bad:,} of {tensor.numel():,} NaN or inf"
            )


def sound(tensors: Iterable[Tensor]) -> bool:
    """Whether all is surely well: NaN and infinity reach the sum (and so does overflow: then each is looked at)."""
    return all(t.dtype in FLOATS and math.isfinite(t.sum().item()) for t in tensors)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically and durably. Raises InputError for values that are not finite or a folder that takes no
    file.
    """
    atomic(tensor_file(path, tensors, metadata), durable=True)


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], durable: bool
) -> None:
    """Write both files of an adapter: whole on disk under temporary names first, then renamed one after the other."""
    atomic(tensor_file(folder / WEIGHTS, tensors, metadata) | json_file(folder / CONFIG, config), durable)


def tensor_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Writes:
    """A safetensors file, its tensors in the order that the safetensors library gives them; equal adapters, equal
    bytes (that library's metadata come in random order).
    """
    path = Path(path)
    raise_all(unsound(tensors, path.name))
    parts = serialized(tensors, metadata)
    return {path: lambda temporary: put(temporary, parts)}


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Any]:
    """The bytes of a safetensors file, in parts; those of a tensor that is whole and on the CPU are no copy."""
    order, text = header(tensors, metadata)
    return [text, *(raw(here(tensors[key])) for key in order)]


def here(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, one behind the other: itself, where they lie so."""
    if tensor.is_cpu and not tensor.requires_grad and tensor.is_contiguous():
        return tensor
    return tensor.detach().cpu().contiguous()


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of tensors in a file, and all that stands before their values; shapes and dtypes are enough."""
    rank = {dtype: i for i, dtype in enumerate(DTYPES)}
    order = sorted(tensors, key=lambda key: (rank[tensors[key].dtype], key))
    info = {"format": "pt"} | dict(metadata)
    form: dict[str, Any] = {"__metadata__": dict(sorted(info.items()))}
    end = 0
    for key in order:
        t = tensors[key]
        start, end = end, end + t.numel() * t.element_size()
        form[key] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(form, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def json_file(path: str | Path, form: Mapping[str, Any]) -> Writes:
    text = json.dumps(form, indent=2, sort_keys=True) + "\n"
    return {Path(path): lambda temporary: put(temporary, [text.encode()])}


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
    """Write JSON atomically and durably, keys sorted, indented by two: peft's style."""
    atomic(json_file(path, form), durable=True)


def put(path: str, parts: Sequence[Any]) -> None:
    """Fill a file from buffers."""
    handle = os.open(path, os.O_WRONLY)
    try:
        through(os.writev, handle, parts)
    finally:
        os.close(handle)


def through(call: Callable[[int, Sequence[Any]], int], handle: int, parts: Sequence[Any]) -> None:
    """Read or write buffers one after the other: a call of the system for a thousand of them, in place of one for
    each; it may do less than it was given.
    """
    left = [part for part in parts if memoryview(part).nbytes]
    while left:
        done = call(handle, left[:VECTOR])
        if not done:
            raise OSError(f"{sum(memoryview(part).nbytes for part in left):,} bytes short")
        left = behind(left, done)


def behind(parts: Sequence[Any], done: int) -> list[Any]:
    """What is left of buffers after their first `done` bytes."""
    for i, part in enumerate(parts):
        view = memoryview(part)
        if done < view.nbytes:
            return [view.cast("B")[done:] if done else part, *parts[i + 1 :]]
        done -= view.nbytes
    return []


def atomic(writes: Writes, durable: bool) -> None:
    """Let each write fill a temporary file beside its place (`durable`: and fsync it); when all are whole, rename them
    into place.

    On failure the places hold what they held, and no temporary file is left.
    """
    staged: dict[Path, str] = {}
    try:
        for path, write in writes.items():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                staged[path] = fresh(path)
                write(staged[path])
                if durable:
                    sync(staged[path])
        for path, temporary in staged.items():
            with writing(path):
                os.replace(temporary, path)
                if durable:
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


def fresh(path: Path) -> str:
    """An empty file beside a place, under a name that nobody has: `mkstemp`, but as public as any other file."""
    while True:
        name = f"{path.parent}/.{path.name}.{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return name

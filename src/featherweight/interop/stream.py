"""Checkpoints read one tensor at a time: the header first, a tensor's bytes when it is asked for, none kept.

    model.safetensors  |  model.safetensors.index.json and its shards

A mapped file would count as memory for as long as it is open; a tensor read from here is memory of its own and gone
with its last use. All that is wrong with the files is one InputError before the first tensor is read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem, listed, raise_all

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: what is known of it without reading it. `stored[...]` reads it."""

    file: Path
    start: int
    kind: str
    shape: tuple[int, ...]

    def __getitem__(self, _: Any) -> Tensor:
        made = torch.empty(self.shape, dtype=self.dtype)
        if made.numel():
            with open(self.file, "rb") as file:
                file.seek(self.start)
                view = made.view(-1).view(torch.uint8).numpy().data
                if file.readinto(view) != view.nbytes:
                    raise InputError(Problem("the file ends within a tensor", str(self.file), fix="copy it again"))
        return made

    @property
    def dtype(self) -> torch.dtype:
        return NAMES[self.kind]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def get_dtype(self) -> str:
        """What the safetensors library calls it: transformers asks."""
        return self.kind

    def get_shape(self) -> list[int]:
        return list(self.shape)


def checkpoint(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The tensors of a model's folder, or of a name on the hub, by name.

    Raises InputError where there are none in safetensors, for missing and damaged shards and for names that two shards
    have or that the index puts elsewhere.
    """
    single = place(path, WEIGHTS)
    if single is not None:
        return tensors(single)
    index = place(path, INDEX)
    if index is None:
        raise InputError(Problem("no weights in safetensors", str(path), f"{WEIGHTS}, or {INDEX} and its shards",
                                 there(path), "save the model again with save_pretrained"))  # fmt: skip
    return sharded(path, index)


def sharded(path: str | os.PathLike[str], index: Path) -> dict[str, Stored]:
    """The tensors of all shards; the index must say of each where it is."""
    weight_map = read_index(index)
    shards = {name: place(path, name) for name in sorted(set(weight_map.values()))}
    raise_all(Problem("a shard is missing", f"{path}:{name}") for name, file in shards.items() if file is None)
    held = {name: tensors(file) for name, file in shards.items() if file is not None}
    raise_all(disagreements(weight_map, held, index))
    return {key: held[name][key] for key, name in weight_map.items()}


def disagreements(weight_map: dict[str, str], held: dict[str, dict[str, Stored]], index: Path) -> Iterator[Problem]:
    for key, name in weight_map.items():
        if key not in held[name]:
            yield Problem("the shard lacks a tensor that the index puts there", f"{name}:{key}")
    for name, found in held.items():
        for key in found:
            if weight_map.get(key) != name:
                yield Problem("the shard has a tensor that the index does not put there", f"{name}:{key}",
                              got=str(weight_map.get(key)), fix=f"write {index.name} again")  # fmt: skip


def read_index(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(Problem("not an index of shards", str(index), got=str(error))) from error


def tensors(file: Path) -> dict[str, Stored]:
    """The header of a safetensors file. Raises InputError where it and the file's length do not agree."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: Any = json.loads(opened.read(length)) if 0 < length <= file.stat().st_size - 8 else None
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        made = {
            key: Stored(file, 8 + length + v["data_offsets"][0], v["dtype"], tuple(v["shape"]))
            for key, v in entries.items()
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(Problem("not a whole safetensors file", str(file), got=f"{file.stat().st_size:,} bytes",
                                 fix="fetch or copy the model again")) from error  # fmt: skip
    raise_all(unreadable(file, made, entries))
    return made


def unreadable(file: Path, made: dict[str, Stored], entries: dict[str, Any]) -> Iterator[Problem]:
    size = file.stat().st_size
    for key, stored in made.items():
        if stored.kind not in NAMES:
            yield Problem("a dtype that is not known", f"{file.name}:{key}", listed(list(NAMES)), stored.kind)
            continue
        start, end = entries[key]["data_offsets"]
        if end - start != stored.bytes or stored.start + stored.bytes > size:
            yield Problem("the file is shorter than its header says", f"{file.name}:{key}", f"{stored.bytes:,} bytes",
                          f"a file of {size:,} bytes", "fetch or copy the model again")  # fmt: skip


def place(path: str | os.PathLike[str], name: str) -> Path | None:
    """A file of a folder, or of a model on the hub (fetched where need be); None where it has none."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        os.fspath(path),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def there(path: str | os.PathLike[str]) -> str:
    folder = Path(path)
    return listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "nothing of the kind on the hub"


def dtype_in(found: dict[str, Stored]) -> torch.dtype:
    """The dtype that holds every floating-point tensor of a checkpoint without loss."""
    kinds = {s.dtype for s in found.values() if s.dtype.is_floating_point}
    made = torch.float32 if not kinds else kinds.pop()
    for kind in kinds:
        made = torch.promote_types(made, kind)
    return made

"""A folder's weights written one tensor at a time: the header first, then each tensor as it is made, none kept.

    model.safetensors  |  model-00001-of-00003.safetensors ..., model.safetensors.index.json

A checkpoint of any size is written in the memory of its largest tensor.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.interop.stream import INDEX, NAMES, WEIGHTS

LARGEST = 50 * 10**9  # bytes of a shard: transformers' own
ALIGNED = 8


@dataclass(frozen=True, eq=False)
class Due:
    """A tensor that is to be written: what is known of it, and how it is had."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write(folder: Path, due: Mapping[str, Due], largest: int = LARGEST) -> None:
    """The tensors, in their order, into as many files as it takes."""
    shards: list[dict[str, Due]] = [{}]
    for name, tensor in due.items():
        if shards[-1] and sum(t.bytes for t in shards[-1].values()) + tensor.bytes > largest:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        one(folder / WEIGHTS, shards[0])
        return
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        one(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(t.bytes for t in due.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def one(file: Path, due: Mapping[str, Due]) -> None:
    header = json.dumps(described(due), separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNED)
    with open(file, "wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in due.items():
            made = tensor.make().detach().cpu().contiguous()
            if (made.dtype, tuple(made.shape)) != (tensor.dtype, tensor.shape):
                raise AssertionError(f"{name}: {made.dtype} {tuple(made.shape)} for {tensor.dtype} {tensor.shape}")
            out.write(made.reshape(-1).view(torch.uint8).numpy().data)


def described(due: Mapping[str, Due]) -> dict[str, Any]:
    """The header: names, dtypes, shapes and places."""
    kinds = {dtype: name for name, dtype in NAMES.items()}
    form: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in due.items():
        form[name] = {
            "dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, start + tensor.bytes],
        }  # fmt: skip
        start += tensor.bytes
    return form

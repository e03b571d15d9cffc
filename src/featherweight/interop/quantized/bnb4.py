"""bitsandbytes' 4-bit weights as its state dicts keep them: tensors beside the weight, and JSON as bytes.

    P.weight                     uint8 (ceil(N K / 2), 1)     two codes a byte, the first in the high nibble
    P.weight.absmax              float32 (blocks,)            or uint8, where the scales are quantized themselves
    P.weight.quant_map           float32 (16,)
    P.weight.nested_absmax       float32 (ceil(blocks / 256),)      only beside uint8 scales
    P.weight.nested_quant_map    float32 (256,)                     only beside uint8 scales
    P.weight.quant_state.bitsandbytes__nf4   uint8: {"quant_type", "blocksize", "dtype", "shape", "nested_…"}

    s = nested_quant_map[absmax] · nested_absmax[i // 256] + nested_offset        W = quant_map[code] · s

What is read is what is written: the bytes of a file survive. Source: bitsandbytes 0.50, functional.QuantState.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all

KINDS = ("nf4", "fp4")
STATE = "quant_state.bitsandbytes__"
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FIX = "the file is damaged, or of another version: save it again with the library that wrote it"


@dataclass(frozen=True, eq=False)
class Weight4:
    """One weight: `codes` flat, uint8; `nested` is None where the scales are plain."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # what it decodes to
    block: int
    codes: Tensor
    absmax: Tensor
    table: Tensor
    nested: "Nested | None" = None

    def scales(self) -> Tensor:
        """The absmax of each block, float32."""
        if self.nested is None:
            return self.absmax
        n = self.nested
        return n.table[self.absmax.int()] * n.absmax.repeat_interleave(n.block)[: len(self.absmax)] + n.offset


@dataclass(frozen=True, eq=False)
class Nested:
    """How the scales are quantized: blocks of `block` around `offset`."""

    block: int
    absmax: Tensor
    table: Tensor
    offset: float


def read4(tensors: Mapping[str, Tensor], path: str) -> Weight4:
    """The weight of the module at `path`. Raises InputError naming every tensor that is not as the layout says."""
    stem = f"{path}.weight" if path else "weight"
    mine = {k.removeprefix(f"{stem}."): t for k, t in tensors.items() if k.startswith(f"{stem}.")}
    said = record(mine, stem)
    nested = "nested_absmax" in mine or "nested_blocksize" in said
    raise_all(wrong(mine | {"": tensors[stem]} if stem in tensors else mine, said, nested, stem))
    inner = None
    if nested:
        size, offset = int(said["nested_blocksize"]), float(said["nested_offset"])
        inner = Nested(size, mine["nested_absmax"], mine["nested_quant_map"], offset)
    codes = tensors[stem].view(torch.uint8).reshape(-1)
    shape, dtype = tuple(map(int, said["shape"])), FLOATS[said["dtype"]]
    return Weight4(
        said["quant_type"], shape, dtype, int(said["blocksize"]), codes, mine["absmax"], mine["quant_map"], inner
    )


def record(mine: Mapping[str, Tensor], stem: str) -> dict[str, Any]:
    """The JSON beside a weight."""
    names = [k for k in mine if k.startswith(STATE)]
    expected = f"one of {', '.join(f'{stem}.{STATE}{kind}' for kind in KINDS)}"
    if len(names) != 1 or names[0].removeprefix(STATE) not in KINDS:
        got = ", ".join(names) or "none"
        raise_all([Problem("a 4-bit weight without its record", stem, expected, got, FIX)])
    where = f"{stem}.{names[0]}"
    try:
        said = json.loads(bytes(mine[names[0]].tolist()))
    except ValueError as error:
        raise_all([Problem("not JSON", where, got=str(error), fix=FIX)])
    needed = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}
    if not isinstance(said, dict):
        raise_all([Problem("not an object", where, f"the keys {', '.join(needed)}", repr(said), FIX)])
    raise_all(
        Problem("missing or of another type", f"{where}:{key}", kind.__name__, repr(said.get(key)), FIX)
        for key, kind in needed.items()
        if not isinstance(said.get(key), kind)
    )
    kind = names[0].removeprefix(STATE)
    raise_all([Problem("key and record disagree", where, kind, said["quant_type"], FIX)] * (said["quant_type"] != kind))
    return dict(said)


def wrong(mine: Mapping[str, Tensor], said: Mapping[str, Any], nested: bool, stem: str) -> Iterator[Problem]:
    """What disagrees between a record and the tensors beside it; the weight itself goes under ""."""
    state = f"{stem}.{STATE}{said['quant_type']}"
    if said["dtype"] not in FLOATS:
        yield Problem("unknown dtype", f"{state}:dtype", " or ".join(FLOATS), repr(said["dtype"]), FIX)
    if said["blocksize"] < 1 or not all(isinstance(d, int) and d > 0 for d in said["shape"]):
        yield Problem("not a size", state, "positive numbers", f"{said['blocksize']}, {said['shape']}", FIX)
        return
    n = prod(said["shape"])
    blocks = ceil(n / said["blocksize"])
    expected: dict[str, tuple[torch.dtype | None, int]] = {
        "": (None, ceil(n / 2)), "quant_map": (torch.float32, 16),
        "absmax": (torch.uint8 if nested else torch.float32, blocks),
    }  # fmt: skip
    if nested:
        inner = said.get("nested_blocksize")
        if not isinstance(inner, int) or inner < 1 or not isinstance(said.get("nested_offset"), float | int):
            got = f"{inner!r}, {said.get('nested_offset')!r}"
            yield Problem("scales of scales without", state, "nested_blocksize and nested_offset", got, FIX)
            return
        expected |= {"nested_absmax": (torch.float32, ceil(blocks / inner)), "nested_quant_map": (torch.float32, 256)}
    for name, (dtype, size) in expected.items():
        yield from unlike(mine.get(name), f"{stem}.{name}".rstrip("."), dtype, size)


def unlike(tensor: Tensor | None, where: str, dtype: torch.dtype | None, size: int) -> Iterator[Problem]:
    """Whether a flat tensor has the dtype and size expected; dtype None: bytes of any dtype (`quant_storage`)."""
    wanted = f"{str(dtype or 'bytes').removeprefix('torch.')} ({size},)"
    if tensor is None:
        yield Problem("missing tensor", where, wanted, fix=FIX)
        return
    held = tensor.numel() * (1 if dtype else tensor.element_size())
    if (dtype is not None and tensor.dtype is not dtype) or held != size:
        yield Problem(
            "misshapen tensor", where, wanted, f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}", FIX
        )
    elif dtype is torch.float32 and not tensor.is_meta and not torch.isfinite(tensor).all():
        yield Problem("NaN or inf", where, "finite numbers", fix=FIX)


def write4(weight: Weight4, path: str, storage: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    """The state dict's tensors of one weight, in bitsandbytes' order; `storage` is its `quant_storage`."""
    stem = f"{path}.weight" if path else "weight"
    said: dict[str, Any] = {
        "quant_type": weight.kind, "blocksize": weight.block, "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }  # fmt: skip
    beside = {"absmax": weight.absmax, "quant_map": weight.table}
    if weight.nested is not None:
        inner = weight.nested
        said |= {"nested_blocksize": inner.block, "nested_dtype": "float32", "nested_offset": inner.offset}
        beside |= {"nested_absmax": inner.absmax, "nested_quant_map": inner.table}
    beside[f"{STATE}{weight.kind}"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return {stem: weight.codes.view(storage)[:, None], **{f"{stem}.{k}": t for k, t in beside.items()}}

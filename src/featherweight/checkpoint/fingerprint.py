"""The fingerprint of a base: says which frozen model an adapter belongs to, and which tensor differs first.

It covers the frozen tensors, never the config or the adapters: the model's class, every name and shape, and of each
tensor
a fixed sample of its values. Two digests of the sample serve two questions:

* the same dtype: a SHA-256 over up to 1,024 values of each tensor, so that a base trained further is found out;
* another dtype (a cast of the same base): four values of each tensor, compared within what bf16 keeps.

A tensor that the adapter itself brings along (a task head) is left out: the base's own copy is never used.

A tensor kept as codes goes by the name and shape of what it decodes to, and by its codes and scales. The same codes are
the same base. Of codes and floats, or of codes of two formats, only the tensors that neither keeps as codes are held
against each other: an adapter trained on a quantized base is of use on the float one and the other way round, so that
is no error, and `strangeness` says it. Where it is one (LoftQ makes up for what one rounding lost), the method says so.
Reading is 1,024 values a tensor, so a fingerprint takes milliseconds for any size of base.
"""

import base64
import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any
from weakref import ref

import numpy
import torch
from torch import Tensor, nn

from featherweight.core.encoded import Encoded, encoded
from featherweight.core.errors import Problem
from featherweight.core.host import base_modules, base_parameters, frozen_class
from featherweight.core.stack import stacked

MANY, FEW = 1024, 4
UNKNOWN = numpy.full(FEW, numpy.nan, "<f4").tobytes()
ARRAYS = {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8}
PLAIN = ARRAYS | {torch.bfloat16}  # what numpy has, and what it can look at
CAST_RTOL, CAST_ATOL = 2.0**-7, 2.0**-24  # one unit in the last place of bf16; the smallest fp16 number


@dataclass(frozen=True)
class Fingerprint:
    """A base on record. `names`: eight hex digits a tensor (name and shape); `exact`: eight of its sampled values."""

    base: str  # class and, where known, the name of the base
    parameters: int
    dtype: str
    names: str
    exact: str
    sample: str  # base64 of fp32, FEW values a tensor; NaN for one kept as codes
    scheme: str = ""  # the number formats of tensors kept as codes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fingerprint(model: nn.Module, without: Collection[str] = (), name: str = "") -> Fingerprint:
    """The fingerprint of a model's frozen part, tensors named in `without` left out. `name`: what to call the base."""
    tensors = frozen(model, without)
    cls = frozen_class(model).__name__
    known = [coded(t) if isinstance(t, Encoded) else look(t) for t in tensors.values()]
    return Fingerprint(
        base=f"{cls} ({name})" if name else cls,
        parameters=sum(t.count if isinstance(t, Encoded) else t.numel() for t in tensors.values()),
        dtype="+".join(sorted(str(d).removeprefix("torch.") for d in {t.dtype for t in tensors.values()})),
        names="".join([named(key, t.shape) for key, t in tensors.items()]),
        exact="".join([k.exact for k in known]),
        sample=base64.b64encode(b"".join([k.few for k in known])).decode(),
        scheme=", ".join(sorted({t.scheme for t in tensors.values() if isinstance(t, Encoded)})),
    )


def differences(model: nn.Module, saved: Fingerprint, without: Collection[str] = (), name: str = "") -> list[Problem]:
    """A problem naming both bases and the first tensor that differs, or nothing where the base is the one on record."""
    mine = fingerprint(model, without, name)
    if mine == saved:
        return []
    keys = list(frozen(model, without))
    first = unlike(mine.names, saved.names, 8)
    if first is not None:
        tensor = keys[first] if first < len(keys) else "a tensor that this model lacks"
        return [wrong(mine, saved, tensor, "name or shape")]
    alike = (mine.dtype, mine.scheme) == (saved.dtype, saved.scheme)
    first = unlike(mine.exact, saved.exact, 8) if alike else uncast(mine.sample, saved.sample)
    return [] if first is None else [wrong(mine, saved, keys[first], "values")]


def strangeness(model: nn.Module, saved: Fingerprint) -> Problem | None:
    """That the base is kept in another number format than the one on record, which is no other base."""
    schemes = {e.scheme for _, m in keeping(model) for e in encoded(m).values()}
    mine = ", ".join(sorted(schemes))
    if mine == saved.scheme:
        return None
    wanted, got = saved.scheme or "floating point", mine or "floating point"
    return Problem("the adapter was trained over weights in another number format", "base", wanted, got,
                   "what rounding changed shows in the outputs")  # fmt: skip


def wrong(mine: Fingerprint, saved: Fingerprint, tensor: str, what: str) -> Problem:
    return Problem(
        f"the adapter belongs to another base; the first tensor that differs (in its {what}) is {tensor}",
        expected=f"{saved.base}, {saved.parameters:,} parameters, {saved.dtype}",
        got=f"{mine.base}, {mine.parameters:,} parameters, {mine.dtype}",
        fix="load it onto its own base, or give strict_base=False to go on all the same",
    )


def frozen(model: nn.Module, without: Collection[str]) -> dict[str, Tensor | Encoded]:
    """The base's tensors by name, sorted, tied ones once; those kept as codes by the name of what they decode to."""
    found: dict[str, Tensor | Encoded] = dict(base_parameters(model))
    seen: set[int] = set()
    for path, module in keeping(model):
        for name, it in encoded(module).items():
            if id(it.kept[0]) not in seen:
                found[f"{path}.{name}" if path else name] = it
            seen.add(id(it.kept[0]))
    return {key: t for key, t in sorted(found.items()) if key not in without}


def keeping(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that hold tensors, or whose experts are kept as codes."""
    return [(path, m) for path, m in base_modules(model) if m._parameters or m._buffers or stacked(m)]


def unlike(mine: str, saved: str, width: int) -> int | None:
    """The number of the first field of `width` characters in which two strings differ."""
    if mine == saved:
        return None
    for at in range(0, min(len(mine), len(saved)), width):
        if mine[at : at + width] != saved[at : at + width]:
            return at // width
    return min(len(mine), len(saved)) // width


def uncast(mine: str, saved: str) -> int | None:
    """The first tensor whose sampled values are no cast of those on record."""
    here, there = (numpy.frombuffer(base64.b64decode(s), "<f4").astype("f8") for s in (mine, saved))
    with numpy.errstate(invalid="ignore"):  # NaN, of codes, is never far
        far = numpy.abs(here - there) > CAST_ATOL + CAST_RTOL * numpy.abs(there)
    return int(far.argmax()) // FEW if far.any() else None


def sampled(tensor: Tensor, count: int, padded: bool = False) -> Any:
    """Values at fixed, evenly spread places, in float64; repeated up to `count` where `padded`."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().reshape(-1)
    where = places(flat.numel(), count if padded else min(count, flat.numel()))
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        return flat.numpy()[where].astype("f8")  # the same values without a tensor for every step on the way
    return flat[torch.from_numpy(where).to(flat.device)].cpu().double().numpy()


@cache
def places(size: int, wanted: int) -> Any:
    """`wanted` places among `size`. Odd strides: powers of two would sample one column of a weight."""
    return numpy.arange(wanted, dtype=numpy.int64) * max(1, (size - 1) // max(1, wanted - 1)) % size


@dataclass(frozen=True, eq=False, slots=True)
class Known:
    """What is kept of a tensor: how it was found, the digest of its MANY values, and FEW of them in fp32."""

    version: int
    place: int
    dtype: torch.dtype
    bits: bytes  # those few as they lie in memory
    exact: str
    few: bytes


# id of a tensor -> the tensor, held weakly, and what is kept of it: what is asked at every save and load is mostly
# unchanged, and torch's own dictionary of this kind makes two objects for each look
_known: dict[int, tuple[ref[Tensor], Known]] = {}


def keep(tensor: Tensor, found: Known) -> Known:
    """Remember what was found, for as long as the tensor lives; of its memory nothing is held."""
    key = id(tensor)

    def gone(dead: ref[Tensor]) -> None:
        if key in _known and _known[key][0] is dead:
            del _known[key]

    _known[key] = ref(tensor, gone), found
    return found


def look(tensor: Tensor) -> Known:
    """What is kept of a tensor, for as long as it has the same version, memory and FEW values.

    Those few are looked at as well because writes through `.data`, as a merge makes them, do not count as a version.
    """
    if tensor.is_inference():
        return seen(tensor, 0, b"")
    held, version, bits = _known.get(id(tensor)), tensor._version, glimpsed(tensor)
    if held is not None and held[0]() is tensor:
        then = held[1]
        same = (then.version, then.place, then.bits) == (version, tensor.data_ptr(), bits)
        if same and then.dtype is tensor.dtype:
            return then
    return keep(tensor, seen(tensor, version, bits))


def glimpsed(tensor: Tensor) -> bytes:
    """FEW values as they lie in memory: no tensor for any step on the way, where the CPU has them."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in PLAIN
    if plain and tensor.is_cpu and tensor.is_contiguous():
        flat = (tensor.detach() if tensor.dtype in ARRAYS else tensor.detach().view(torch.int16)).numpy().reshape(-1)
        return flat[places(flat.size, FEW)].tobytes()
    return few_of(tensor)


def seen(tensor: Tensor, version: int, bits: bytes) -> Known:
    every = bytes(sampled(tensor, MANY).astype("<f8").tobytes())
    return Known(version, tensor.data_ptr(), tensor.dtype, bits, digest(every), few_of(tensor))


def few_of(tensor: Tensor) -> bytes:
    return bytes(sampled(tensor, FEW, padded=True).astype("<f4").tobytes())


def coded(tensor: Encoded) -> Known:
    """The digest of its codes and scales; values that only decoding would tell are NaN."""
    exact = digest("".join(look(t).exact for t in tensor.kept).encode())
    return Known(0, 0, tensor.dtype, b"", exact, UNKNOWN)


@cache
def named(key: str, shape: tuple[int, ...]) -> str:
    return digest(f"{key} {tuple(shape)}".encode())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]

"""Quantized checkpoints of other makers, read as ours: a record of schemes, and tensors under our names.

    {"quant_method": "bitsandbytes" | "gptq" | "awq"}     P.weight, P.weight.absmax, …  |  P.qweight, P.qzeros, …
      ->  path -> scheme                                  P.codes, P.absmax, …

Only headers and what is small are read here; a tensor is made when it is asked for. The libraries are not needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.interop.quantized import bnb
from featherweight.interop.quantized.bnb4 import STATE, read4
from featherweight.interop.quantized.bnb8 import read8
from featherweight.interop.quantized.gptq import layout_of, overridden, read_gptq
from featherweight.interop.stream import NAMES as NAMES_OF
from featherweight.quant.llmint8 import LLMInt8
from featherweight.quant.scheme import Scheme

SMALL = 4096  # bytes: tables and records are, whatever the weight


@dataclass(frozen=True)
class Derived:
    """A tensor that is made of others when it is asked for (`derived[...]`), known beforehand by dtype and shape."""

    make: Callable[[], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __getitem__(self, _: Any) -> Tensor:
        return self.make()

    def get_dtype(self) -> str:
        """What the safetensors library calls it: transformers asks."""
        return next(name for name, dtype in NAMES_OF.items() if dtype is self.dtype)

    def get_shape(self) -> list[int]:
        return list(self.shape)


@dataclass(frozen=True)
class Read:
    """`schemes`: path -> scheme; `stored`: name -> what reads as a tensor, of the whole checkpoint."""

    schemes: dict[str, Scheme]
    stored: dict[str, Any]


def foreign(form: Any) -> bool:
    """Whether a config's `quantization_config` is one that is read here."""
    return isinstance(form, Mapping) and str(form.get("quant_method")) in READERS


def translated(form: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> Read:
    """A checkpoint read as ours. `stored` values have dtype and shape and give their tensor for `[...]`.

    Raises one InputError over every tensor that is not as its layout says.
    """
    method = str(form["quant_method"])
    paths, reader = READERS[method](form, stored, where)
    if not paths:
        expected = {"bitsandbytes": f"P.weight.{STATE}nf4 or P.SCB"}.get(method, "P.qweight, P.qzeros, P.scales")
        fix = "is config.json another model's?"
        raise InputError(Problem(f"no tensor of {method}'s", where, expected, f"{len(stored)} others", fix))
    schemes: dict[str, Scheme] = {}
    rest: dict[str, Any] = dict(stored)
    problems: list[Problem] = []
    for path in paths:
        mine = {k: stored[k] for k in (f"{path}.{n}" for n in NAMES) if k in stored}
        try:
            schemes[path], packed = reader(mine, path)
        except InputError as error:
            problems += error.problems
            continue
        for key in mine:
            del rest[key]
        rest |= {f"{path}.{name}": tensor for name, tensor in packed.items()}
    raise_all(problems)
    return Read(schemes, rest)


def idle(name: str, stored: Mapping[str, Any]) -> bool:
    """Whether a tensor is a bias of zeros: AutoGPTQ wrote those for layers that have none."""
    return name.endswith(".bias") and name in stored and not bool(stored[name][...].any())


KINDS = [f"weight.{STATE}{kind}" for kind in bnb.TABLES]
NAMES = (
    *("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    *(*KINDS, "SCB", "weight_format", "qweight", "qzeros", "scales", "g_idx"),
)
Reader = Callable[[Mapping[str, Any], str], tuple[Scheme, dict[str, Any]]]


def bitsandbytes(form: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> tuple[list[str], Reader]:
    """Paths of its weights, and how one is read."""
    threshold = form.get("llm_int8_threshold", 6.0)
    if form.get("load_in_8bit") or form.get("_load_in_8bit"):
        return ending(stored, ["SCB"]), lambda mine, path: int8(mine, path, float(threshold))
    return ending(stored, KINDS), four_bit


def ending(stored: Mapping[str, Any], names: list[str]) -> list[str]:
    """Paths of modules that have a tensor of one of these names."""
    return [k.removesuffix(f".{n}") for k in stored for n in names if k.endswith(f".{n}")]


def four_bit(mine: Mapping[str, Any], path: str) -> tuple[Scheme, dict[str, Any]]:
    weight = read4({k: known(t) for k, t in mine.items()}, path)
    scheme = bnb.scheme4(weight, f"{path}.weight")
    codes, stem = mine[f"{path}.weight"], f"{path}.weight."
    packed: dict[str, Any] = {
        "codes": Derived(lambda: codes[...].view(torch.uint8).view(-1), torch.uint8, tuple(weight.codes.shape)),
        "absmax": mine[f"{stem}absmax"],
    }
    if weight.nested is not None:
        offset = torch.tensor(weight.nested.offset, dtype=torch.float32)
        packed |= {"nested_absmax": mine[f"{stem}nested_absmax"], "nested_offset": offset}
    return scheme, packed


def int8(mine: Mapping[str, Any], path: str, threshold: float) -> tuple[Scheme, dict[str, Any]]:
    read8({k: known(t) for k, t in mine.items()}, path)
    scales = mine[f"{path}.SCB"]
    flat = Derived(lambda: scales[...].view(-1), torch.float32, (mine[f"{path}.weight"].shape[0],))
    return LLMInt8(threshold), {"codes": mine[f"{path}.weight"], "absmax": flat}


def grouped(form: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> tuple[list[str], Reader]:
    """Paths of GPTQ's or AWQ's weights, and how one is read: whole, as zeros and groups decide the scheme."""
    layout_of(form, where)

    def reader(mine: Mapping[str, Any], path: str) -> tuple[Scheme, dict[str, Any]]:
        layout = layout_of(overridden(form, path), where)
        return read_gptq({k: t[...] for k, t in mine.items()}, path, layout)

    return ending(stored, ["qweight"]), reader


def known(tensor: Any) -> Tensor:
    """A stored tensor where it is small, else one like it without memory."""
    shape = tuple(tensor.shape)
    like = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return tensor[...] if like.numel() * like.element_size() <= SMALL else like


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], str], tuple[list[str], Reader]]] = {
    bnb.METHOD: bitsandbytes, "gptq": grouped, "awq": grouped,
}  # fmt: skip

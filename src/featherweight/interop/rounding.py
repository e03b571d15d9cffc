"""What the tensors of a merged model's folder are rounded to, once, from float32, and what that costs the adapter.

    auto                each tensor as the base's file has it; new and decoded ones as most of the file's numbers are
    fp32 | bf16 | fp16  all of them

    written = round(W + Δ)        kept = ⟨round(W + Δ) − W, Δ⟩ / ⟨Δ, Δ⟩        (`core/evidence.py`)

bfloat16 has 8 bits of fraction: a change of a weight by less than 2⁻⁹ of it rounds away.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from featherweight.core.base import read
from featherweight.core.encoded import encoded
from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.evidence import MergeReport, Survival, survival
from featherweight.core.host import base_modules, hosts
from featherweight.core.merge import Rewritten
from featherweight.interop.filed import Filed, whole

AUTO = "auto"
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PIECE = 1 << 16  # numbers that are compared at a time


@dataclass(frozen=True)
class Dtypes:
    """The dtypes that a base's floating-point tensors have in its files, by the names that the model has for them."""

    known: Mapping[str, torch.dtype]
    usual: torch.dtype  # which most numbers have

    @classmethod
    def of(cls, model: Any, became: Mapping[str, torch.dtype], stored: Mapping[str, Any]) -> "Dtypes":
        """Of a model that was just read. became: of the weights that are codes now; stored: the file's tensors by the
        model's names, for those that are in memory already.
        """
        known, counts = dict(became), Counter[torch.dtype]()
        for name, tensor in own(model):
            if isinstance(tensor, Filed):
                known[name] = tensor.source.stored
            elif name in stored and tensor.is_floating_point():
                known[name] = stored[name].dtype
            if name in known:
                counts[known[name]] += tensor.numel()
        for name, kind in became.items():
            counts[kind] += prod(stored[name].shape) if name in stored else 1
        floats = [kind for kind, _ in counts.most_common() if kind.is_floating_point]
        return cls(known, floats[0] if floats else torch.float32)


def own(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors but for codes, by every name that they have."""
    codes = {id(t) for _, m in base_modules(model) for e in encoded(m).values() for t in e.kept}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(tensor) not in codes:
            yield name, tensor


@dataclass
class Rounding:
    """A merge's roundings: what each tensor is rounded to, and what that made of the adapters' changes."""

    dtypes: Dtypes
    to: str = AUTO
    paths: dict[int, str] = field(default_factory=dict)
    rows: list[Survival] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, to: str = AUTO) -> "Rounding":
        """Raises InputError for a word that is no dtype, and for "auto" where the base's files were never seen."""
        raise_all(problems(to, "dtype"))
        to = next((short for short, kind in KINDS.items() if name_of(kind) == to), to)
        there = getattr(model, "stored_dtypes", None)
        if there is None and to == AUTO:
            fix = "load the base with filed=True, or say fp32, bf16 or fp16"
            raise InputError(Problem("what the base's files have is not known", "dtype", got=repr(to), fix=fix))
        return cls(there or Dtypes({}, KINDS[to]), to, {id(host): path for path, host in hosts(model)})

    @property
    def usual(self) -> torch.dtype:
        return self.dtypes.usual if self.to == AUTO else KINDS[self.to]

    def dtype(self, name: str, now: torch.dtype) -> torch.dtype:
        """What a tensor is written in."""
        if not now.is_floating_point:
            return now
        return self.dtypes.known.get(name, self.usual) if self.to == AUTO else self.usual

    def see(self, found: Rewritten) -> None:
        """(host, tensor's name, its merged value) of one host."""
        for host, name, W in found:
            where = f"{self.paths[id(host)]}.{name}".lstrip(".")
            to = self.dtype(where, W.dtype)
            if not holds(to, W.dtype):
                self.rows.append(cost(where, whole(read(host, name)), W, to))

    @property
    def report(self) -> MergeReport | None:
        """None where nothing that merging rewrites is rounded."""
        return MergeReport(tuple(self.rows)) if self.rows else None


def problems(word: str, where: str) -> Iterator[Problem]:
    """What is wrong with the word for a dtype."""
    if word not in (AUTO, *KINDS, *map(name_of, KINDS.values())):
        yield Problem("unknown dtype", where, listed([AUTO, *KINDS]), repr(word))


def holds(to: torch.dtype, kind: torch.dtype) -> bool:
    """Whether every value of one dtype is one of another."""
    return torch.promote_types(to, kind) is to


def cost(where: str, before: Tensor, W: Tensor, to: torch.dtype) -> Survival:
    """What is left of W − before once W is rounded; summed piece by piece."""
    pieces = zip(before.reshape(-1).split(PIECE), W.reshape(-1).split(PIECE), strict=True)
    parts = tuple(survival(where, name_of(to), was, now, rounded(where, now, to)) for was, now in pieces)
    return replace(MergeReport(parts).total, where=where, scheme=name_of(to))


def rounded(name: str, W: Tensor, to: torch.dtype) -> Tensor:
    """W in another dtype. Raises InputError where finite values would not stay finite."""
    made = W.to(to)
    if holds(to, W.dtype) or bool(made.isfinite().all()):
        return made
    lost = int((W.isfinite() & ~made.isfinite()).sum())
    if lost:
        got = f"{lost:,} values beyond it, the largest {float(W[W.isfinite()].abs().max()):.4g}"
        limit = f"at most {torch.finfo(to).max:.5g}"
        raise InputError(Problem(f"too large for {name_of(to)}", name, limit, got, "write bf16 or fp32"))
    return made


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

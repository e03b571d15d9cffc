"""SHIRA: `shira_weight (k,)` and `shira_indices (2, k)` int32, rows and columns, with k = r (in + out).

Slices of a fused projection are one sparse change of the whole, at their rows. PEFT takes one r for all modules and
demands exactly k values: where there are fewer, entries of value 0 at place (0, 0) fill up, and are dropped again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX, named, regex, targeted
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import Parts, transposed
from featherweight.methods.shira import SHiRA

FIELDS = ("r", "mask_type", "random_seed", "target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out",
          "init_weights", "layers_to_transform", "layers_pattern")  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {"r": (int,), "target_modules": (list, str), "random_seed": (int,)}


def sides(module: nn.Module) -> int:
    """in + out."""
    out, into = cast(Any, module).weight.shape
    return int(out + into)


def count(adapter: Any) -> int:
    own: list[Any] = list(adapter.of.values()) if isinstance(adapter, Parts) else [adapter]
    return sum(len(a.shira_weight) for a in own)


def common_rank(model: nn.Module, adapters: Adapters) -> int:
    """The least r whose k holds the values of every module."""
    modules = dict(base_modules(model))
    return max(-(-count(a) // sides(modules[path])) for path, a in adapters.items())


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    method = cast(SHiRA, method)
    modules = dict(base_modules(model))
    return {
        "r": common_rank(model, adapters),
        "mask_type": "random",  # PEFT knows no other name; the places in the file are what counts
        "random_seed": method.seed,
        "target_modules": named(list(adapters), list(modules)),
        "fan_in_fan_out": any(transposed(modules[path]) for path in adapters),
    }


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    modules = dict(base_modules(model))
    rank = common_rank(model, adapters) if adapters else 0
    return [e for path, a in adapters.items() for e in stored(path, a, state, rank * sides(modules[path]))]


def stored(path: str, adapter: Any, state: Mapping[str, Tensor], k: int) -> list[Entry]:
    """The two tensors of one module, k long."""
    many = isinstance(adapter, Parts)
    rows = list(adapter.rows.values()) if many else [None]
    stems = [f"{path}.{role}" for role in adapter.rows] if many else [path]
    sizes = [len(state[f"{stem}.shira_weight"]) for stem in stems]

    def pack(given: Sequence[Tensor]) -> Tensor:
        return torch.cat([*given, given[0].new_zeros(k - sum(sizes))])

    def unpack(kept: Tensor) -> Sequence[Tensor]:
        return kept[: sum(sizes)].split(sizes)

    def place(given: Sequence[Tensor]) -> Tensor:
        whole = [moved(at, r) for at, r in zip(given, rows, strict=True)]
        return torch.cat([*whole, given[0].new_zeros(2, k - sum(sizes))], 1)

    def displace(kept: Tensor) -> Sequence[Tensor]:
        return [back(at, r) for at, r in zip(kept[:, : sum(sizes)].split(sizes, 1), rows, strict=True)]

    key = f"{PREFIX}{path}"
    return [
        Entry(f"{key}.shira_weight", (k,), tuple(f"{s}.shira_weight" for s in stems), pack, unpack),
        Entry(f"{key}.shira_indices", (2, k), tuple(f"{s}.shira_indices" for s in stems), place, displace),
    ]


def moved(at: Tensor, rows: Tensor | None) -> Tensor:
    """Places in a slice -> places in the whole."""
    return at if rows is None else torch.stack([rows.to(at)[at[0].long()], at[1]])


def back(at: Tensor, rows: Tensor | None) -> Tensor:
    """Places in the whole -> places in a slice, whose rows rise."""
    if rows is None:
        return at
    order = rows.cpu().argsort()
    return torch.stack([order[torch.searchsorted(rows.cpu()[order], at[0].long())].to(at), at[1]])


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The method that a foreign config means; a fused projection it targets is adapted whole."""
    typed(config, TYPES, where)
    if config.get("init_weights") is False:
        raise InputError(Problem("a start that is for tests only", f"{where}:init_weights", "true", "false"))
    modules = list(dict(base_modules(model)))
    hit = targeted(config, modules, where)
    return SHiRA(rank=config.get("r", 32), targets=regex(hit, modules), seed=config.get("random_seed") or 0)


CODEC = Codec("SHIRA", FIELDS, config, entries, method)

"""VERA: `vera_lambda_b (out,)`, `vera_lambda_d (r,)` per module; `base_model.vera_A (r, in)`, `base_model.vera_B (out,
r)` once, unless `save_projection` is false: then `projection_prng_key` draws them.

Slices of a fused projection with rows R₁, R₂ ... are exact as a VeRA of a larger rank over the whole projection, one
block of r for each distinct set of rows (and one for the modules that are adapted whole):

    A = [A; A; ...]  (r·blocks, in)     B = [ B at R₁ | B at R₂ | ... ]     λ_d = [d₁; d₂; ...], 0 in blocks not its own
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX, named, regex, targeted, width
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import Parts, transposed
from featherweight.methods.vera import Vectors, VeRA

FIELDS = ("r", "target_modules", "exclude_modules", "modules_to_save", "projection_prng_key", "save_projection",
          "vera_dropout", "d_initial", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern",
          "init_weights")  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "projection_prng_key": (int,),
    "save_projection": (bool,),
    "vera_dropout": (int, float),
    "d_initial": (int, float),
    "target_modules": (list, str),
    "exclude_modules": (list, str),
    "modules_to_save": (list,),
    "layers_to_transform": (list, int),
    "layers_pattern": (list, str),
}
Rows = tuple[int, ...] | None  # of a slice, None for a whole module


def made(adapter: nn.Module) -> dict[str, tuple[Rows, Vectors]]:
    """By role, "" for a whole module's."""
    if not isinstance(adapter, Parts):
        return {"": (None, cast(Vectors, adapter))}
    rows = {role: None if r is None else tuple(r.tolist()) for role, r in adapter.rows.items()}
    return {role: (rows[role], cast(Vectors, part)) for role, part in adapter.of.items()}


def blocks(adapters: Adapters) -> list[Rows]:
    """The distinct sets of rows."""
    return list(dict.fromkeys(rows for a in adapters.values() for rows, _ in made(a).values()))


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    method = cast(VeRA, method)
    modules, cut = dict(base_modules(model)), blocks(adapters)
    if cut != [None] and not method.save_projection:
        raise InputError(
            Problem("slices of a fused projection cannot be drawn again from a seed in PEFT's format",
                    "method.save_projection", "True", fix="or adapt the projections whole, by a regex of their names")
        )  # fmt: skip
    return {
        "r": method.rank * len(cut),
        "target_modules": named(list(adapters), list(modules)),
        "projection_prng_key": method.seed,
        "save_projection": method.save_projection,
        "vera_dropout": method.dropout,
        "d_initial": method.d_initial,
        "fan_in_fan_out": any(transposed(modules[path]) for path in adapters),
        "bias": "none",
        "init_weights": True,
    }


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    modules, cut = dict(base_modules(model)), blocks(adapters)
    found = []
    for path, adapter in adapters.items():
        found += vectors(path, adapter, cut, width(modules[path]))
    parts = {name: next((k for k in state if k.endswith(f".shared.{name}")), None) for name in ("vera_A", "vera_B")}
    if parts["vera_A"] is not None and parts["vera_B"] is not None:
        widest = max(width(modules[path]) for path in adapters)
        found += projections(parts["vera_A"], parts["vera_B"], state, cut, widest)
    return found


def vectors(path: str, adapter: nn.Module, cut: list[Rows], out: int) -> list[Entry]:
    """The two entries of one module."""
    by_role = made(adapter)
    key, rank = f"{PREFIX}{path}.", len(next(iter(by_role.values()))[1].vera_lambda_d)
    b, d = (
        tuple(f"{path}.{role}.{n}" if role else f"{path}.{n}" for role in by_role)
        for n in ("vera_lambda_b", "vera_lambda_d")
    )
    at = [cut.index(rows) * rank for rows, _ in by_role.values()]
    spans = [torch.arange(start, start + rank) for start in at]
    places = [torch.arange(out) if rows is None else torch.tensor(rows) for rows, _ in by_role.values()]
    return [spread(f"{key}vera_lambda_b", b, places, out), spread(f"{key}vera_lambda_d", d, spans, rank * len(cut))]


def spread(key: str, parts: tuple[str, ...], places: Sequence[Tensor], size: int) -> Entry:
    """Vectors at their places in one of zeros."""

    def pack(given: Sequence[Tensor]) -> Tensor:
        whole = given[0].new_zeros(size)
        for at, part in zip(places, given, strict=True):
            whole[at.to(whole.device)] = part
        return whole

    return Entry(key, (size,), parts, pack, lambda kept: [kept[at] for at in places])


def projections(A: str, B: str, state: Mapping[str, Tensor], cut: list[Rows], out: int) -> list[Entry]:
    """The entries of what all modules share."""
    (rank, into), (tall, _) = state[A].shape, state[B].shape
    stem = PREFIX.removesuffix("model.")
    if cut == [None]:
        return [same(f"{stem}vera_A", A, (rank, into)), same(f"{stem}vera_B", B, (tall, rank))]
    rows = [tuple(range(out)) if r is None else r for r in cut]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))

    def pack(given: Sequence[Tensor]) -> Tensor:
        whole = given[0].new_zeros(out, rank * len(rows))
        for i, r in enumerate(rows):
            n = min(len(r), tall)  # a whole module beside slices may be wider than B needs to be
            whole[list(r[:n]), i * rank : (i + 1) * rank] = given[0][:n]
        return whole

    return [
        Entry(f"{stem}vera_A", (rank * len(rows), into), (A,), lambda given: given[0].repeat(len(rows), 1),
              lambda kept: [kept[:rank]]),
        Entry(f"{stem}vera_B", (out, rank * len(rows)), (B,), pack,
              lambda kept: [kept[list(rows[longest][:tall]), longest * rank : (longest + 1) * rank]]),
    ]  # fmt: skip


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The VeRA that a foreign config means; a fused projection it targets is adapted whole."""
    typed(config, TYPES, where)
    if config.get("bias", "none") != "none":
        raise InputError(Problem("not supported: biases trained beside VeRA", f"{where}:bias", "'none'",
                                 repr(config["bias"])))  # fmt: skip
    modules = [path for path, _ in base_modules(model)]
    return VeRA(
        rank=config.get("r", 256),
        d_initial=config.get("d_initial", 0.1),
        dropout=config.get("vera_dropout") or 0.0,
        targets=regex(targeted(config, modules, where), modules),
        seed=config.get("projection_prng_key", 0),
        save_projection=config.get("save_projection", True),
    )


CODEC = Codec("VERA", FIELDS, config, entries, method)

"""ADALORA: `lora_A (r, in)`, `lora_B (out, r)`, `lora_E (r, 1)`, without `.weight`; r counts the kept ranks.

`rank_pattern` holds the boolean masks of the kept ranks, all as long as `init_r`, under `<path>.lora_E`; the scale is
lora_alpha/(init_r + 1e-5) for every module. Slices of a fused projection are one AdaLoRA of the summed rank (A and e
stacked, B block by block); where modules then differ in their rank, `init_r` is the largest and masks fill up the rest.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry
from featherweight.checkpoint.peft.codec import Adapters, Codec, refused, typed
from featherweight.checkpoint.peft.lora import FIELDS as LORA
from featherweight.checkpoint.peft.lora import FOREIGN, whole
from featherweight.checkpoint.peft.lora import TYPES as LORA_TYPES
from featherweight.checkpoint.peft.names import PREFIX, named, regex, targeted, width
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import Parts, transposed
from featherweight.methods.adalora import AdaLoRA
from featherweight.methods.triplets import FACTORS, Triplets

STEPS = ("tinit", "tfinal", "deltaT")
FIELDS = ("init_r", "target_r", *STEPS, "beta1", "beta2", "orth_reg_weight", "total_step")
TYPES = dict.fromkeys(("init_r", "target_r", *STEPS), (int,)) | dict.fromkeys(FIELDS[5:8], (int, float))


def made(adapter: nn.Module) -> dict[str, Triplets]:
    """By role, "" for a whole module's."""
    return cast(dict[str, Triplets], dict(adapter.of) if isinstance(adapter, Parts) else {"": adapter})


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    method = cast(AdaLoRA, method)
    modules = dict(base_modules(model))
    ranks = {path: sum(len(t.kept) for t in made(a).values()) for path, a in adapters.items()}
    most = max(ranks.values())
    used = {path: [bool(u) for t in made(a).values() for u in t.used()] for path, a in adapters.items()}
    masks = {f"{path}.lora_E": mask + [False] * (most - len(mask)) for path, mask in used.items()}
    scale = next(iter(made(next(iter(adapters.values()))).values())).scale
    steps = [int(x) if x >= 1 else 0 for x in (method.start, method.final)]
    return {
        "init_r": most,
        "target_r": method.target_rank,
        "lora_alpha": whole(scale * (most + 1e-5)),
        "lora_dropout": method.dropout,
        "rank_pattern": {key: mask for key, mask in masks.items() if not all(mask)} or None,
        "target_modules": named(list(adapters), list(modules)),
        "fan_in_fan_out": any(transposed(modules[path]) for path in adapters),
        "tinit": steps[0],
        "tfinal": steps[1],
        "deltaT": max(1, int(method.every)),
        "total_step": sum(steps) + 1,  # PEFT builds none without; shares of a run have no number of steps
        "beta1": method.betas[0],
        "beta2": method.betas[1],
        "orth_reg_weight": method.orthogonality,
        "init_lora_weights": True,
        "bias": "none",
    }


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    modules = dict(base_modules(model))
    return [entry for path, a in adapters.items() for entry in of(path, a, width(modules[path]))]


def of(path: str, adapter: nn.Module, out: int) -> list[Entry]:
    """The three entries of one module; what only resumes a run is put back at its start with `lora_E`."""
    by_role = made(adapter)
    stems = [f"{path}.{role}." if role else f"{path}." for role in by_role]
    masks = [t.used().cpu() for t in by_role.values()]
    into, kept = next(iter(by_role.values())).lora_A.shape[1], sum(int(m.sum()) for m in masks)
    rows = [None if r is None else r.cpu() for r in adapter.rows.values()] if isinstance(adapter, Parts) else [None]
    A, B, E = (tuple(f"{stem}{name}" for stem in stems) for name in FACTORS)
    rest = {
        f"{stem}{n}": mask if n == "kept" else torch.zeros_like(b, device="cpu")
        for stem, t, mask in zip(stems, by_role.values(), masks, strict=True)
        for n, b in t.named_buffers()
    }
    key = f"{PREFIX}{path}."
    return [
        Entry(f"{key}lora_A", (kept, into), A, partial(taken, masks), partial(given, masks)),
        Entry(f"{key}lora_B", (out, kept), B, partial(blocks, masks, rows, out), partial(unblocked, masks, rows)),
        Entry(f"{key}lora_E", (kept, 1), (*E, *rest), lambda all_: taken(masks, all_[: len(masks)]),
              lambda kept: [*given(masks, kept), *rest.values()]),
    ]  # fmt: skip


def taken(masks: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The kept rows of the parts, one part below the other."""
    return torch.cat([p[m.to(p.device)] for m, p in zip(masks, parts, strict=True)])


def given(masks: Sequence[Tensor], stored: Tensor) -> list[Tensor]:
    """The way back: rows that are not kept are 0."""
    found = []
    for mask, rows in zip(masks, stored.split([int(m.sum()) for m in masks]), strict=True):
        found.append(stored.new_zeros(len(mask), *stored.shape[1:]))
        found[-1][mask] = rows
    return found


def blocks(masks: Sequence[Tensor], rows: Sequence[Tensor | None], out: int, parts: Sequence[Tensor]) -> Tensor:
    """B, its kept columns block by block at the rows of the slices."""
    columns = [p[:, m.to(p.device)] for m, p in zip(masks, parts, strict=True)]
    if rows[0] is None:
        return columns[0]
    return torch.cat(
        [
            c.new_zeros(out, c.shape[1]).index_copy(0, r.to(c.device), c)
            for r, c in zip(rows, columns, strict=True)
            if r is not None
        ],
        dim=1,
    )


def unblocked(masks: Sequence[Tensor], rows: Sequence[Tensor | None], stored: Tensor) -> list[Tensor]:
    found = []
    for mask, r, columns in zip(masks, rows, stored.split([int(m.sum()) for m in masks], 1), strict=True):
        cut = columns if r is None else columns[r]
        found.append(cut.new_zeros(len(cut), len(mask)))
        found[-1][:, mask] = cut
    return found


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The AdaLoRA that a foreign config means; a fused projection it targets is adapted whole."""
    typed(config, LORA_TYPES | TYPES | {"rank_pattern": (dict,)}, where)
    refused(config, (*FOREIGN, "use_rslora"), where)
    if config.get("bias", "none") != "none":
        raise InputError(Problem("not supported: biases trained beside AdaLoRA", f"{where}:bias", "'none'",
                                 repr(config["bias"])))  # fmt: skip
    modules = [path for path, _ in base_modules(model)]
    rank = config.get("init_r", 12)
    patterns = config.get("rank_pattern") or {}
    alpha = config.get("lora_alpha", 8)
    return AdaLoRA(
        rank=rank,
        target_rank=min(config.get("target_r", 8), rank),
        alpha=alpha if alpha > 0 else rank,
        dropout=config.get("lora_dropout") or 0.0,
        targets=regex(targeted(config, modules, where), modules),
        start=config.get("tinit", 0),
        final=config.get("tfinal", 0),
        every=config.get("deltaT", 1),
        betas=(config.get("beta1", 0.85), config.get("beta2", 0.85)),
        orthogonality=config.get("orth_reg_weight", 0.5),
        rank_pattern={key.removesuffix(".lora_E"): mask for key, mask in patterns.items()},
    )


CODEC = Codec("ADALORA", tuple(dict.fromkeys((*LORA, *FOREIGN, *FIELDS))), config, entries, method)

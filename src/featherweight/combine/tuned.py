"""`extract`: a full fine-tune turned into a LoRA.

    ΔW = W_tuned − W_base = U Σ Vᵀ        B = U_r √Σ_r        A = √Σ_r V_rᵀ        s = 1

B A is the best approximation of rank r (Eckart and Young 1936); at full rank it is ΔW.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherweight.checkpoint.load import quiet_chance, undone
from featherweight.combine.measure import measured
from featherweight.combine.report import Extracted, Left, Spectrum
from featherweight.combine.seats import KINDS, Seat, lora_on, put, seats
from featherweight.core.adapter import Replace
from featherweight.core.anatomy import anatomy
from featherweight.core.attach import attach
from featherweight.core.base import read
from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.host import base_modules
from featherweight.core.part import transposed
from featherweight.core.site import kind_of
from featherweight.core.state import adapters
from featherweight.core.switch import switch_of


class Change(NamedTuple):
    """ΔW as a matrix (out, in) with its decomposition."""

    shape: tuple[int, ...]
    relative: float
    U: Tensor
    values: Tensor
    V: Tensor


def extract(
    tuned: Any,
    base: Any,
    rank: int = 16,
    *,
    task: Any = None,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    name: str = "default",
) -> Extracted:
    """Attach to `base`, in place, the LoRA of this rank that is nearest to the fine-tune `tuned`; it is for use.

    tuned, base: models of one class, or folders of them, loaded for `task` (a classifier's base needs one).
    batches: inputs to measure on, with labels for the loss.
    Every linear layer, convolution and embedding that differs gets its factors, of a smaller rank where the matrix is
    smaller; the task head comes along whole. All else that differs (biases, norms) is left out and reported.
    Raises InputError for models of other tensors, for adapters that are still attached, and where nothing differs.
    """
    if rank < 1:
        raise InputError(Problem("rank out of range", "rank", "1 or more", str(rank)))
    tuned, base = opened(tuned, task), opened(base, task)
    alike(tuned, base)
    heads = task_heads(base)
    changes = differing(tuned, base, heads)
    if not changes:
        fix = "give the fine-tuned model first, then the one it was made from"
        raise InputError(Problem("no weight differs: equal models, or biases and norms alone do", "extract", fix=fix))
    with undone(base, name), quiet_chance(base):
        fill(base, tuned, changes, rank, bool(heads), name)
        found = measured(tuned, base, name, batches) if batches is not None else None
    spectra = [Spectrum(s.path, c.shape, c.values, min(rank, len(c.values)), c.relative) for s, c in changes.items()]
    count = sum(min(rank, len(c.values)) * (len(c.U) + c.V.shape[1]) for c in changes.values())
    return Extracted(base, name, spectra, left(tuned, base, changes, heads), bool(heads), count, found)


def opened(model: Any, task: Any) -> Any:
    """The live model, or the one in a folder."""
    if not isinstance(model, str | os.PathLike):
        return model
    from featherweight.interop import load_base

    return load_base(model, task)


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The base's tensors by name, those of tied modules under each of their names."""
    return {f"{path}.{n}" if path else n: read(m, n).detach() for path, m in base_modules(model)
            for n, p in m._parameters.items() if p is not None}  # fmt: skip


def alike(tuned: nn.Module, base: nn.Module) -> None:
    """Raise InputError where the two do not have the same tensors, or the tuned one has adapters on it."""
    if tuned is base:
        raise InputError(Problem("one model cannot be both", "extract", fix="load the base a second time"))
    on = switch_of(tuned).attached
    if on:
        raise InputError(Problem("the tuned model has adapters", "tuned", got=listed(list(on)), fix="fw.merge(tuned)"))
    one, other = plain(tuned), plain(base)
    wrong = [k for k in {**one, **other} if k not in one or k not in other or one[k].shape != other[k].shape]
    raise_all(
        Problem("tensor of another shape, or of one model only", k, size(other.get(k)), size(one.get(k)),
                "load both as the same class: give the task that tuned was made for")
        for k in wrong
    )  # fmt: skip


def size(t: Tensor | None) -> str:
    return "none" if t is None else f"{tuple(t.shape)}"


def task_heads(model: nn.Module) -> list[str]:
    """The leaves of the task's head; a language model's head is a weight like any other."""
    there = anatomy(model)
    return [] if there.generates else [s.path for s in there.sites("head")]


def differing(tuned: nn.Module, base: nn.Module, heads: list[str]) -> dict[Seat, Change]:
    """The modules that a LoRA can sit on and whose weights differ."""
    others = dict(base_modules(tuned))
    found = {}
    for path, module in base_modules(base):
        if kind_of(module) in KINDS and path not in heads and getattr(module, "groups", 1) == 1:
            change = decomposed(module, read(others[path], "weight").detach(), read(module, "weight").detach())
            if change is not None:
                found[Seat(path)] = change
    return found


def decomposed(module: nn.Module, new: Tensor, old: Tensor) -> Change | None:
    """None where nothing changed. An embedding's matrix is (H, V), a convolution's (C_out, C_in · kernel)."""
    delta = new.to(old.device).float() - old.float()
    if not delta.any():
        return None
    turned = transposed(module) or isinstance(module, nn.Embedding)
    U, values, V = torch.linalg.svd(delta.T if turned else delta.flatten(1), full_matrices=False)
    relative = float(delta.norm() / old.float().norm().clamp_min(1e-30))
    return Change(tuple(old.shape), relative, U, values, V)


def fill(base: nn.Module, tuned: nn.Module, changes: Mapping[Seat, Change], rank: int, head: bool, name: str) -> None:
    """Attach the LoRA with its values, and the tuned head."""
    attach(base, lora_on(base, {s: min(rank, len(c.values)) for s, c in changes.items()}), name, head=head, train=False)
    own = adapters(base, name)
    for seat, seated in seats(base, {s.path: own[s.path] for s in changes}).items():
        U, values, V = changes[seat].U, changes[seat].values[:rank], changes[seat].V
        root = values.sqrt()
        put(seated.adapter, root[:, None] * V[: len(root)], U[:, : len(root)] * root)
    new = plain(tuned)
    with torch.no_grad():
        for path, adapter in own.items():
            if isinstance(adapter, Replace):
                for part, p in adapter.named_parameters():
                    p.copy_(new[f"{path}.{part}"])


def left(tuned: nn.Module, base: nn.Module, changes: Mapping[Seat, Change], heads: list[str]) -> list[Left]:
    """The tensors that differ and are in neither the LoRA nor the head."""
    new, taken = plain(tuned), {f"{s.path}.weight" for s in changes}
    found = []
    for key, old in plain(base).items():
        if key in taken or key.rpartition(".")[0] in heads:
            continue
        delta = new[key].to(old.device).float() - old.float()
        if delta.any():
            found.append(Left(key, float(delta.norm() / old.float().norm().clamp_min(1e-30))))
    return found

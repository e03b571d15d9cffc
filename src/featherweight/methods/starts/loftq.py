"""LoftQ: start from what quantizing the weight loses.

    Q₀ = q(W)        s Bₜ Aₜ = the best approximation of rank r of W − Qₜ        Qₜ₊₁ = q(W − s Bₜ Aₜ)

so that Q + s B A is nearer to W than q(W) is; q is to encode and to decode. One round (`loftq`) leaves the codes those
of W: any base quantized in the same way will do. With more rounds (`loftq-5`: five) the codes are others, found for
this very adapter, and its file fits no other base. Neither step knows of the other, so that a late round may lose what
an earlier one won (it does, from the fourth on, at half the full rank): the best round is kept.
It starts as its host becomes codes: attach, then quantize. On a model that is quantized already `prepare` starts it
from `model.originals`, a mapping of names to the weights as they were (`load_base(path, quantize=...)` leaves it there;
nothing is read before it is needed).
Source: Li et al. 2023, LoftQ, arXiv:2310.08659, algorithm 1.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.base import read, write
from featherweight.core.encoded import encoded, same
from featherweight.core.errors import Problem, alike, raise_all
from featherweight.core.host import hosts
from featherweight.core.part import transposed
from featherweight.core.prepare import say
from featherweight.core.state import single
from featherweight.methods.lowrank import LowRank
from featherweight.methods.starts.pissa import pissa


def loftq(adapter: LowRank, W: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Set the factors of a fresh adapter; returns what is to be kept as codes. One that was trained stays as it is."""
    if not fresh(adapter):
        return W
    M, kept, found = adapter.matrix(W.detach()).float(), W, []
    with torch.no_grad():
        for _ in range(adapter.rounds):
            lost = M - adapter.matrix(rounded(kept)).float()
            A, B = pissa(lost, adapter.A.shape[0], adapter.scale)
            change = adapter.scale * (B @ A)
            found.append((float((lost - change).norm()), A, B, kept))
            kept = W - adapter.shaped(change, W).to(W.dtype)
        _, A, B, kept = min(found, key=lambda one: one[0])
        adapter.A.copy_(A)
        adapter.B.copy_(B)
    return kept


def prepare(
    method: Any, model: nn.Module, adapters: Mapping[str, Any], batches: Iterable[Mapping[str, Tensor]]
) -> None:
    """Start what waits still, from the weights as they were before they became codes."""
    waits = {path: a for path, a in adapters.items() if any(fresh(one) for _, one in single({path: a}))}
    modules = dict(hosts(model))
    raise_all(alike(p for path in waits for p in obstacles(model, path, modules[path])))
    if waits:
        say(batches, f"loftq: starting {len(waits)} layers from what quantizing lost …")
    for path, adapter in waits.items():
        begin(modules[path], adapter, original(model, path)[...])


def fresh(adapter: Any) -> bool:
    """Whether a low-rank adapter waits for its start."""
    return isinstance(adapter, LowRank) and adapter.rounds > 0 and not (adapter.A.any() and adapter.B.any())


def obstacles(model: nn.Module, path: str, host: Any) -> Iterable[Problem]:
    """Why an adapter cannot start: its host keeps no codes, or nobody knows what they were made of."""
    there, before = encoded(host).get("weight"), original(model, path)
    if there is None:
        fix = "fw.quantize(model, fw.NF4()), or leave it out of the targets"
        yield Problem("LoftQ starts from what quantizing loses, and this is not quantized", path, fix=fix)
        return
    if before is None:
        fix = "attach before you quantize, or set model.originals to the checkpoint's tensors by name"
        yield Problem("what quantizing lost is not known any more", path, fix=fix)
        return
    own = tuple(before.shape)
    if own != tuple(there.shape):
        yield Problem("the original has another shape", f"{path}.weight", str(tuple(there.shape)), str(own))


def original(model: Any, path: str) -> Any:
    """A host's weight as it was, or what reads it (`[...]`); checkpoints of a trunk lack, or have, its prefix."""
    there, prefix = getattr(model, "originals", None) or {}, f"{getattr(model, 'base_model_prefix', '')}."
    key = f"{path}.weight"
    return next((there[k] for k in (key, key.removeprefix(prefix), prefix + key) if k in there), None)


def begin(host: Any, adapter: Any, original: Tensor) -> None:
    """One host's adapter from its original weight; with several rounds the host gets other codes."""
    flip, there = transposed(host), encoded(host)["weight"]

    def turned(W: Tensor) -> Tensor:
        return W.T if flip else W

    W, now = turned(original.to(there.kept[0].device)), turned(read(host, "weight"))
    kept = adapter.rounding(W, lambda w: now if same(w, W) else turned(there.again(turned(w))))
    if not same(kept, W):
        write(host, "weight", turned(kept), True)

"""Merging: fold the weight laws of the active adapters into plain weights, for good or for a while.

There is no `merged` flag and no un-merge arithmetic: `merge` gives a plain model back, `merged` keeps what it
overwrites and puts it back bit for bit. A weight kept as codes becomes a plain one: as codes it would lose most of a
small change, so that `requantize=True` must be asked for, and reports what it lost (`merge_report`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.attach import detach
from featherweight.core.base import Base, lend, write
from featherweight.core.encoded import encoded, identity, names
from featherweight.core.errors import FeatherweightError, NotMergeable
from featherweight.core.evidence import MergeReport, evidence
from featherweight.core.host import base_modules, hosts, refuse_sharded, stack_of
from featherweight.core.switch import switch, switch_of

# Called with the model when a tied tensor had to be untied, so that its config can say so.
on_untie: list[Callable[[nn.Module], None]] = []

Rewritten = list[tuple[Any, str, Tensor]]


def rewritten(model: nn.Module) -> Rewritten:
    """(host, tensor's name, its merged value) for everything the active adapters rewrite. Nothing is touched.

    Raises NotMergeable naming every host whose active adapters cannot be folded.
    """
    refuse_sharded(model, "merge", "save the adapter and merge it into a model that is not sharded")
    state = switch_of(model)
    if state.rows is not None:
        raise NotMergeable("rows have adapters of their own: fw.switch(model, name) first, then merge")
    stuck = [n for n in state.active if not state.attached[n].method.mergeable]
    if stuck:
        raise NotMergeable(
            f"cannot be merged: {', '.join(f'{n} ({state.attached[n].method!r})' for n in stuck)}; "
            "save the adapter instead, or switch it off first"
        )
    out: Rewritten = []
    with torch.no_grad():
        for path, host in hosts(model):
            for name, W in Base(host, stack_of(host, state.active)).merged.items():
                if not torch.isfinite(W).all():
                    raise FeatherweightError(f"{path}.{name}: merging would write NaN or inf; the adapter is damaged")
                out.append((host, name, W))
    return out


def merge(model: nn.Module, *, requantize: bool = False) -> nn.Module:
    """Fold the active adapters into the weights and take every adapter off: a plain model of the base's class, in
    place.

    A tied tensor that is rewritten in one place only is untied. A weight kept as codes becomes a plain one, exactly;
    with `requantize=True` it is encoded again, and `model.merge_report` says how much of the change survived.
    Raises NotMergeable before anything is touched.
    """
    found = rewritten(model)
    report = evidence(model, found) if requantize else None
    untie(model, found)
    with torch.no_grad():
        for host, name, W in found:
            write(host, name, W, requantize)
    if report is not None:
        vars(model)["merge_report"] = report
    return detach(model)


def merge_report(model: nn.Module) -> MergeReport:
    """What `merge(model, requantize=True)` would lose, host by host. Nothing is touched.

    Raises NotMergeable as `merge` does, and InputError where nothing that merging rewrites is kept as codes.
    """
    return evidence(model, rewritten(model))


@contextmanager
def merged(model: nn.Module, *, requantize: bool = False) -> Iterator[nn.Module]:
    """The model with its active adapters folded into its weights for the length of a `with`; then all is as before.

    `requantize=True` gives it the values that `merge(model, requantize=True)` would leave it: what those are worth can
    be measured on held-out rows, before anything is lost.
    """
    found = rewritten(model)
    with torch.no_grad():
        back = [
            lend(host, {name: nn.Parameter(lasting(host, name, W, requantize), requires_grad=False)})
            for host, name, W in found
        ]
    before = switch(model, None)
    try:
        yield model
    finally:
        for put_back in reversed(back):
            put_back()
        before.__exit__()


def lasting(host: Any, name: str, W: Tensor, requantize: bool) -> Tensor:
    """A merged tensor as the host would keep it."""
    there = encoded(host).get(name) if requantize else None
    return W.clone() if there is None else there.again(W)


def untie(model: nn.Module, found: Rewritten) -> None:
    """Give rewritten tensors that other modules share a tensor of their own, unless all sharers get the same one.
    Codes are never written in place, so that a host which shares some only lets go of them.
    """
    holders = Counter(id(identity(m, n)) for _, m in base_modules(model) for n in names(m))
    loose = False
    for host, name, W in found:
        own = identity(host, name)
        if own is None or holders[id(own)] < 2:
            continue
        same = [w for h, n, w in found if identity(h, n) is own]
        if len(same) < holders[id(own)] or any(not torch.equal(w, W) for w in same):
            if name in host._parameters:
                host._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
            loose = True
    if loose:
        for hook in on_untie:
            hook(model)

"""Merging: fold the weight laws of the active adapters into plain weights, for good or for a while.

There is no `merged` flag and no un-merge arithmetic: `merge` gives a plain model back, `merged` keeps what it
overwrites and puts it back bit for bit.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.attach import detach
from featherweight.core.base import Base, lend, write
from featherweight.core.errors import FeatherweightError, NotMergeable
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


def merge(model: nn.Module) -> nn.Module:
    """Fold the active adapters into the weights and take every adapter off: a plain model of the base's class, in
    place.

    A tied tensor that is rewritten in one place only is untied. Raises NotMergeable before anything is touched.
    """
    found = rewritten(model)
    untie(model, found)
    with torch.no_grad():
        for host, name, W in found:
            write(host, name, W)
    return detach(model)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its active adapters folded into its weights for the length of a `with`; then all is as before."""
    found = rewritten(model)
    with torch.no_grad():
        back = [lend(host, {name: nn.Parameter(W.clone(), requires_grad=False)}) for host, name, W in found]
    before = switch(model, None)
    try:
        yield model
    finally:
        for put_back in reversed(back):
            put_back()
        before.__exit__()


def untie(model: nn.Module, found: Rewritten) -> None:
    """Give rewritten tensors that other modules share a tensor of their own, unless all sharers get the same one."""
    holders = Counter(id(p) for _, m in base_modules(model) for p in m._parameters.values() if p is not None)
    loose = False
    for host, name, W in found:
        own = host._parameters.get(name)
        if own is None or holders[id(own)] < 2:
            continue
        same = [w for h, n, w in found if h._parameters.get(n) is own]
        if len(same) < holders[id(own)] or any(not torch.equal(w, W) for w in same):
            host._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
            loose = True
    if loose:
        for hook in on_untie:
            hook(model)

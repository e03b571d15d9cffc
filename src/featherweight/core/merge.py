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
from featherweight.core.evidence import Evidence, MergeReport
from featherweight.core.host import base_modules, hosts, refuse_sharded, stack_of
from featherweight.core.switch import switch, switch_of

# Called with the model when a tied tensor had to be untied, so that its config can say so.
on_untie: list[Callable[[nn.Module], None]] = []

Rewritten = list[tuple[Any, str, Tensor]]


def folded(path: str, host: Any) -> Rewritten:
    """(host, tensor's name, its merged value) for everything the active adapters of a host rewrite, untouched.

    Raises FeatherweightError for NaN and infinity.
    """
    out: Rewritten = []
    with torch.no_grad():
        for name, W in Base(host, stack_of(host, host.switch.active)).merged.items():
            if not torch.isfinite(W).all():
                raise FeatherweightError(f"{path}.{name}: merging would write NaN or inf; the adapter is damaged")
            out.append((host, name, W))
    return out


def foldable(model: nn.Module) -> None:
    """Raise NotMergeable naming every active adapter that cannot be folded."""
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


def rewritten(model: nn.Module) -> Rewritten:
    """All that merging rewrites, at once. Nothing is touched. Raises NotMergeable as `merge` does."""
    foldable(model)
    return [one for path, host in hosts(model) for one in folded(path, host)]


def checked(model: nn.Module, see: Callable[[Rewritten], object] = lambda _: None) -> list[list[tuple[str, Any]]]:
    """(path, host) of every host that merging rewrites, those that rewrite one tensor together. Each is computed,
    checked, shown to `see` and let go, so that one is in memory at a time. Nothing is touched.
    """
    foldable(model)
    groups: dict[int, list[tuple[str, Any]]] = {}  # identity of a tensor -> the hosts that rewrite it
    for path, host in hosts(model):
        found = folded(path, host)
        if not found:
            continue
        see(found)
        keys = {id(own) for _, name, _ in found if (own := identity(host, name)) is not None} or {id(host)}
        near = list({id(groups[key]): groups[key] for key in keys & groups.keys()}.values())
        mine = [one for group in near for one in group] + [(path, host)]
        keys |= {key for key, group in groups.items() if any(group is other for other in near)}
        groups |= dict.fromkeys(keys, mine)
    return list({id(group): group for group in groups.values()}.values())


def merge(model: nn.Module, *, requantize: bool = False) -> nn.Module:
    """Fold the active adapters into the weights and take every adapter off: a plain model of the base's class, in
    place.

    A tied tensor that is rewritten in one place only is untied. A weight kept as codes becomes a plain one, exactly;
    with `requantize=True` it is encoded again, and `model.merge_report` says how much of the change survived.
    Every host is computed and checked before the first is written; no more than one is held, those of tied tensors
    together. Raises NotMergeable before anything is touched.
    """
    report = Evidence(model) if requantize else None
    groups = checked(model) if report is None else checked(model, report.see)
    made = None if report is None else report.report()
    holders, loose = sharers(model), False
    for group in groups:
        found = [one for path, host in group for one in folded(path, host)]
        loose |= untie(found, holders)
        with torch.no_grad():
            for host, name, W in found:
                write(host, name, W, requantize)
    if loose:
        for hook in on_untie:
            hook(model)
    if made is not None:
        vars(model)["merge_report"] = made
    return detach(model)


def merge_report(model: nn.Module) -> MergeReport:
    """What `merge(model, requantize=True)` would lose, host by host. Nothing is touched.

    Raises NotMergeable as `merge` does, and InputError where nothing that merging rewrites is kept as codes.
    """
    report = Evidence(model)
    checked(model, report.see)
    return report.report()


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


def sharers(model: nn.Module) -> Counter[int]:
    """Identity of a tensor -> how many modules hold it."""
    return Counter(id(identity(m, n)) for _, m in base_modules(model) for n in names(m))


def untie(found: Rewritten, holders: Counter[int]) -> bool:
    """Give rewritten tensors that other modules share a tensor of their own, unless all sharers get the same one;
    whether one was. Codes are never written in place, so that a host which shares some only lets go of them.
    """
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
    return loose

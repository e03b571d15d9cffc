"""The step-1 audit: every trainable tensor must have got a gradient; where one did not, say which and why.

A tensor that silently learns nothing is the field's commonest fault: a wrong target, a module that is never called, a
graph cut by reentrant checkpointing or `no_grad`, a batch without a trained token.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError, Problem, listed
from featherweight.core.host import hosts
from featherweight.train.ranks import Ranks


class NoGradient(FeatherweightError):
    """Trainable tensors that cannot learn; the message lists them with the reason."""


@dataclass
class Watch:
    """Which hosts were called while the watch was on."""

    called: dict[str, bool] = field(default_factory=dict)


@contextmanager
def watching(model: nn.Module) -> Iterator[Watch]:
    """Note each host's calls; the hooks are gone afterwards."""
    watch = Watch({path: False for path, _ in hosts(model)})
    hooks = [host.register_forward_pre_hook(noting(watch, path)) for path, host in hosts(model)]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def noting(watch: Watch, path: str):  # type: ignore[no-untyped-def]  # torch's hooks are untyped
    def note(*_: object) -> None:
        watch.called[path] = True

    return note


def audit(trained: Mapping[str, Tensor], watch: Watch, ranks: Ranks) -> list[str]:
    """Check the gradients of the first step, before they are summed over ranks.

    `trained` maps `<name>/<path of host>.<parameter>` to the parameter. Returns the keys whose gradient is all zero,
    which is as it should be for a factor whose partner starts at 0. Raises NoGradient when a tensor has none, or all
    are zero.
    """
    keys = list(trained)
    have = ranks.total(*(float(p.grad is not None) for p in trained.values()))
    calls = dict(zip(watch.called, ranks.total(*map(float, watch.called.values())), strict=True))
    lost = [key for key, n in zip(keys, have, strict=True) if not n]
    if lost:
        raise NoGradient("\n".join(map(str, reasons(lost, {k: bool(n) for k, n in calls.items()}))))
    alive = ranks.total(*(float(moves(p.grad)) for p in trained.values()))
    dead = [key for key, n in zip(keys, alive, strict=True) if not n]
    if len(dead) == len(keys):
        raise NoGradient(f"every gradient of the first step is zero, so nothing would be learned: {listed(dead, 4)}; "
                         "is the loss the same whatever these tensors are?")  # fmt: skip
    return dead


def moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.any(gradient != 0))


def reasons(lost: list[str], called: Mapping[str, bool]) -> Iterator[Problem]:
    """One problem per host: the tensors without gradient and the likeliest cause."""
    by_host: dict[str, list[str]] = {}
    for key in lost:
        path = key.partition("/")[2]
        host = max((h for h in called if path == h or path.startswith(f"{h}.") or not h), key=len, default="")
        by_host.setdefault(host, []).append(key)
    for host, keys in by_host.items():
        if not called.get(host, True):
            cause = "the module was never called in the first step: train other targets"
        else:
            cause = ("the module was called but the graph was cut between it and the loss: reentrant checkpointing, "
                     "no_grad or detach in the model, or an output that the loss does not use")  # fmt: skip
        yield Problem("trainable but without gradient after the first step", listed(keys, 4), fix=cause)

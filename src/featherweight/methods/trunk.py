"""The trunk of a model as methods that may change any of its tensors see it: every tensor but the task head's."""

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from featherweight.core.anatomy import anatomy, holds
from featherweight.core.base import read
from featherweight.core.encoded import identity, names
from featherweight.core.host import base_modules
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve

KINDS = ("linear", "conv", "embedding", "norm", "other")


def trunk(model: nn.Module, targets: Targets = "all") -> Sequence[Site]:
    """Every module with tensors of its own, or those that `targets` picks. A task head (which trains with any method)
    is no part of it, a language model's head is.
    """
    if targets != "all":
        return [s for s in resolve(model, targets, KINDS) if holds(s.module)]
    there = anatomy(model)
    apart = set() if there.generates else {id(s.module) for s in there.sites("head")}
    return [Site(p, m) for p, m in base_modules(model) if holds(m) and id(m) not in apart]


def tensors(site: Site) -> dict[str, tuple[Hashable, Tensor]]:
    """name -> (what the tensor is known by, its value): modules that share a tied one know it by the same key."""
    module = site.module
    own = {n: identity(module, n) for n in names(module)}
    if site.rows is not None:
        own = {n: p for n, p in own.items() if n in ("weight", "bias")}
    role = "" if site.rows is None else site.role
    return {n: ((id(p), role), read(module, n) if site.whole else getattr(site.host, n)) for n, p in own.items()}

"""Optimizers over what the methods ask to be trained, and their state as named tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import find_head
from featherweight.core.errors import InputError, Problem
from featherweight.train.paged import Home, Paged, page

if TYPE_CHECKING:
    from featherweight.core.adapter import Adapter
    from featherweight.core.method import Method

# Adafactor is torch's: steps relative to the scale of a tensor (Shazeer & Stern 2018, section 8), as in T-Few.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda groups, **options: torch.optim.AdamW(groups, **options),
    "adafactor": lambda groups, **options: torch.optim.Adafactor(groups, **options),
    "sgd": lambda groups, **options: torch.optim.SGD(groups, **options),
}


def optimizer(name: str, trained: Sequence[tuple["Method", Mapping[str, "Adapter"]]], lr: float | None,
              decay: float, home: Home | None = None,
              heads: Mapping[str, float] = MappingProxyType({})) -> torch.optim.Optimizer:  # fmt: skip
    """The optimizer over the groups of every trained method; `lr=None` is each method's own rate.

    Each group keeps its peak rate as `peak`. A tensor that two methods share is trained once; `decay` holds for groups
    that do not set `weight_decay` themselves (vectors, biases and norms do, to 0). `home` is where its states are
    paged. `heads` has the rate of hosts that have one of their own (`head_rates`).
    """
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for method, adapters in trained:
        for group in rated(method, adapters, method.lr if lr is None else lr, heads):
            fresh = [p for p in group["params"] if id(p) not in seen]
            seen |= {id(p) for p in fresh}
            groups += [{**group, "params": fresh, "peak": group["lr"]}] if fresh else []
    if not groups:
        raise InputError(Problem("nothing to train: no active adapter has trainable parameters",
                                 fix="attach a method, or switch one on with train=True"))  # fmt: skip
    made = OPTIMIZERS[name](groups, lr=groups[0]["lr"], weight_decay=decay)
    return made if home is None else page(made, home)


def rated(method: "Method", adapters: Mapping[str, "Adapter"], lr: float,
          heads: Mapping[str, float]) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The method's groups at its rate, then those of each other rate."""
    rates = {path: heads.get(path, lr) for path in adapters}
    for rate in dict.fromkeys((lr, *rates.values())):
        yield from method.groups({path: a for path, a in adapters.items() if rates[path] == rate}, rate)


def head_rates(model: nn.Module, trained: Sequence[tuple["Method", Mapping[str, "Adapter"]]],
               lr: float | None) -> dict[str, float]:  # fmt: skip
    """Path -> `lr`, for each part of the task's head that is trained; nothing where `lr` is None.

    A head is often drawn at random, while what is below it starts from the pretrained model: one rate is too small for
    the first or too large for the second. Raises InputError where no task head is trained; a language-model head is
    none.
    """
    if lr is None:
        return {}
    (sites, generates), hosts = find_head(model), {path for _, adapters in trained for path in adapters}
    found = {site.path: lr for site in sites if site.path in hosts and not generates}
    if not found:
        raise InputError(Problem("no task head is trained, which could have a rate of its own", "head_lr",
                                 "a classifier or another head beside the trunk that trains along",
                                 type(model).__name__, "leave head_lr out"))  # fmt: skip
    return found


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that the optimizer updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def state_of(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """`<parameter>::<what>` -> tensor, on the CPU. `names` gives the parameters' names by id."""
    found: dict[str, Tensor] = {}
    for p, state in optimizer.state.items():
        for what, value in state.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{type(optimizer).__name__} keeps {what} as {type(value).__name__}, not as a tensor")
            found[f"{names[id(p)]}::{what}"] = value.detach().cpu().contiguous()
    return found


def load_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` gave, bit for bit; a tensor of an unknown parameter is an error."""
    named = {names[id(p)]: p for p in parameters(optimizer)}
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, what = key.partition("::")
        if name not in named:
            raise InputError(Problem("optimizer state of a parameter that is not trained now", name))
        p = named[name]
        at = tensor if what == "step" else tensor.to(p.device)  # torch keeps step counters on the CPU
        own = at.clone()
        optimizer.state[p][what] = optimizer.hold(own) if isinstance(optimizer, Paged) else own

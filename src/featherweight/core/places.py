"""Places of a block where a module is inserted, found by structure and, where structure leaves it open, by running it.

    after     out = base(x)      →  out + g(out)                 a linear layer, a feed-forward module, a block
    under     z                  →  base(z + g(base(z)))         the norm behind a residual sum (BERT)
    beside    base(x)            →  base(x) + g(x)               a feed-forward module of its own (GPT-2, Llama, T5)
    into_sum  base(h, x)         →  base(h, x + g(x))            BERT's Output, which sums and normalizes (h = inner FF)
    Tap       up(x) … down(h)    →  down(h) + g(x)               feed-forwards that are two layers of their block (BART)

g is called once and sees hidden states (..., d) only: masks, caches and what a block returns beside them go through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import anatomy, shape
from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.layout import same_list
from featherweight.core.site import Site, is_norm
from featherweight.core.switch import switch

Change = Callable[[Tensor], Tensor]
Law = Callable[..., Any]  # (base, change, *args, **kwargs) -> the host's output


def after(base: Any, change: Change, *args: Any, **kwargs: Any) -> Any:
    return onto(base(*args, **kwargs), lambda hidden: hidden + change(hidden))


def under(base: Any, change: Change, z: Tensor) -> Tensor:
    return base(z + change(base(z)))


def beside(base: Any, change: Change, *args: Any, **kwargs: Any) -> Any:
    x = args[0] if args else next(iter(kwargs.values()))
    return onto(base(*args, **kwargs), lambda hidden: hidden + change(x))


def into_sum(base: Any, change: Change, h: Tensor, x: Tensor) -> Tensor:
    return base(h, x + change(x))


def onto(out: Any, change: Change) -> Any:
    """Change the hidden state of an output that may be a tuple led by it."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


class Tap:
    """Carries the feed-forward's input x from its first layer to its last."""

    x: Tensor | None = None

    def keep(self, base: Any, change: Change, x: Tensor) -> Tensor:
        self.x = x
        return base(x)

    def give(self, base: Any, change: Change, h: Tensor) -> Tensor:
        x, self.x = self.x, None
        assert x is not None, "the feed-forward's first layer was not called before its last"
        return base(h) + change(x)


@dataclass(frozen=True, eq=False)
class Place(Site):
    """A site with the law of what is inserted there, the number of its block and the width d of its hidden states."""

    law: Law = after
    block: int = 0
    width: int = 0

    @property
    def whole(self) -> bool:
        """Inserted modules never look at the weight, so a Conv1D is a host like any other."""
        return True


class Plan:
    """A model's blocks, and what each of them has inside; `skip` leaves out the first ones."""

    def __init__(self, model: nn.Module, skip: int = 0):
        self.model, self.there = model, anatomy(model)
        self.blocks = list(enumerate(self.there.blocks))[skip:]
        if not self.blocks:
            got = f"{len(self.there.blocks)} in {type(model).__name__}"
            raise InputError(Problem("no transformer block to sit in", "skip", f"more than {skip} blocks", got))

    def inside(self, role: str, path: str) -> list[Site]:
        return [s for s in self.there.roles.get(role, []) if s.path.startswith(f"{path}.")]

    def width(self, path: str) -> int:
        """The width of a block's residual stream: what its last linear puts out."""
        ends = self.inside("down", path) or self.inside("output", path)
        if not ends:
            raise InputError(Problem("a block without attention output and feed-forward", path))
        return shape(ends[0].module)[0]

    def place(self, number: int, block: str, site: Site, law: Law = after) -> Place:
        return Place(site.path, site.module, site.role, None, law, number, self.width(block))

    def attention(self, cross: bool) -> Iterator[Place]:
        """The output projection of each block's self-attention, of its cross-attention too where `cross`."""
        for number, (path, _) in self.blocks:
            found = self.inside("output", path)
            if not found:
                raise InputError(Problem("no attention output was found in this block", path))
            for site in found if cross else found[:1]:
                yield self.place(number, path, site)

    def feedforward(self) -> Iterator[Place]:
        """The layer that ends each block's feed-forward: its last linear, or the whole of a mixture of experts."""
        for number, (path, block) in self.blocks:
            downs = self.inside("down", path)
            yield self.place(number, path, downs[0] if len(downs) == 1 else self.experts(path, block))

    def experts(self, path: str, block: nn.Module) -> Site:
        """The one child of a block that is neither norm nor attention: a mixture of experts."""
        rest = [
            (f"{path}.{n}", m)
            for n, m in block.named_children()
            if n != "adapters" and not is_norm(m) and any(True for _ in m.parameters())
            if not self.inside("query", f"{path}.{n}") and not self.inside("output", f"{path}.{n}")
        ]
        if len(rest) != 1:
            raise InputError(Problem("no feed-forward was found in this block", path, got=type(block).__name__))
        return Site(*rest[0], "down")

    def norms(self) -> Iterator[Place]:
        """The norms of each block that are as wide as its residual stream."""
        for number, (path, _) in self.blocks:
            for site in self.inside("norm", path):
                if site.host.weight.shape[0] == self.width(path):
                    yield self.place(number, path, site)

    def ends(self) -> Iterator[Place]:
        """The blocks themselves: their output is the residual stream."""
        for number, (path, block) in self.blocks:
            yield self.place(number, path, Site(path, block, "block"))

    def sums(self) -> Iterator[Place]:
        """Where the residual sum behind each feed-forward is read: the norm over it, else the block's output."""
        flows = self.flows()
        for number, (path, block) in self.blocks:
            norm = flows[path].norm
            inner = dict(base_modules(block, path)).get(f"{path}.{norm}") if norm else None
            site = Site(path, block, "block") if inner is None else Site(f"{path}.{norm}", inner, "norm")
            yield self.place(number, path, site, after if inner is None else under)

    def besides(self) -> Iterator[Place]:
        """Around each feed-forward: one host, or two (its first layer and its last) that share a tap."""
        flows: dict[str, Flow] = {}
        for number, (path, block) in self.blocks:
            ups, downs = [*self.inside("up", path), *self.inside("gate", path)], self.inside("down", path)
            if len(downs) != 1:
                yield self.place(number, path, self.experts(path, block), beside)
                continue
            down = downs[0]
            modules = dict(base_modules(block, path))
            around = [down.path[:i] for i, c in enumerate(down.path) if c == "." and i > len(path)]
            called = [p for p in around if not isinstance(modules[p], nn.ModuleList | nn.ModuleDict)]
            holder = next((p for p in reversed(called) if any(u.path.startswith(f"{p}.") for u in ups)), None)
            if holder is not None:
                yield self.place(number, path, Site(holder, modules[holder], "mlp"), beside)
                continue
            flows = flows or self.flows()
            if flows[path].summed:
                yield self.place(number, path, Site(around[-1], modules[around[-1]], "mlp"), into_sum)
                continue
            tap = Tap()
            yield self.place(number, path, Site(ups[0].path, ups[0].module, "tap"), tap.keep)
            yield self.place(number, path, down, tap.give)

    def flows(self) -> dict[str, "Flow"]:
        """How hidden states flow through each block, as seen in the first block of its list."""
        firsts = {}
        for _, (path, _) in self.blocks:
            firsts[path] = next(p for p, _ in self.there.blocks if same_list(p, path))
        seen = watch(self, sorted(set(firsts.values())))
        return {path: seen[first] for path, first in firsts.items()}


@dataclass(frozen=True)
class Flow:
    """`norm` is the norm whose output the block returns, "" where there is none. `summed`: whether the module around
    the feed-forward's last layer is given the feed-forward's input as its second argument and ends in that norm."""

    norm: str
    summed: bool


class Done(Exception):
    """Every block that was to be watched has run."""


def watch(plan: Plan, firsts: list[str]) -> dict[str, Flow]:
    """Run the model on a tiny input with its adapters off and follow tensors by identity through some blocks."""
    model, flows = plan.model, {}
    modules = dict(base_modules(model))
    handles = []
    for path in firsts:
        normed: list[tuple[Tensor, str]] = []
        given: list[tuple[Any, ...]] = []
        fed: list[Tensor] = []
        for p, m in base_modules(modules[path], path):
            if is_norm(m):
                handles.append(m.register_forward_hook(lambda _m, _a, y, p=p, s=normed: s.append((y, p))))
        ups, downs = plan.inside("up", path), plan.inside("down", path)
        if ups and len(downs) == 1 and (around := downs[0].path.rpartition(".")[0]) != path:
            handles.append(ups[0].module.register_forward_pre_hook(lambda _, a, s=fed: s.append(a[0])))
            handles.append(modules[around].register_forward_pre_hook(lambda _, a, s=given: s.append(a)))

        def end(_m: Any, _a: Any, out: Any, path: str = path, normed: Any = normed, pairs: Any = (given, fed)) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            norm = next((p for y, p in normed if y is hidden), "")
            summed = any(len(a) == 2 and any(a[1] is x for x in pairs[1]) for a in pairs[0])
            flows[path] = Flow(norm.removeprefix(f"{path}."), bool(norm) and summed)
            if len(flows) == len(firsts):
                raise Done

        handles.append(modules[path].register_forward_hook(end))
    run(model, handles, firsts[0])
    return flows


def run(model: nn.Module, handles: list[Any], where: str) -> None:
    """Call the model on the smallest input of its kind until `Done`, and leave it as it was."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad(), switch(model, None):
            model.eval()(**sample(model))
        raise InputError(Problem("this block is never called", where))
    except Done:
        return
    except FeatherweightError:
        raise
    except Exception as error:
        raise InputError(
            Problem(
                "the model could not be run on a tiny input to see how its blocks sum and normalize",
                where,
                got=f"{type(error).__name__}: {error}",
                fix="Houlsby() and Lin() need no such run",
            )
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes:
            m.training = mode


def sample(model: nn.Module) -> dict[str, Tensor]:
    """The smallest input of a model's kind: five tokens, an image or a spectrogram of zeros."""
    config: Any = getattr(model, "config", None)
    p = next(model.parameters())
    ids = torch.arange(5, device=p.device)[None]
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        inputs = {name: torch.zeros(1, config.num_channels, size, size, device=p.device, dtype=p.dtype)}
    elif name == "input_features":
        size = (1, config.num_mel_bins, 2 * config.max_source_positions)
        inputs = {name: torch.zeros(size, device=p.device, dtype=p.dtype)}
    else:
        inputs = {name: ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})

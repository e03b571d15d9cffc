"""Places of a block where a module is inserted, found by structure and, where structure leaves it open, by running it.

    after     out = base(x)      →  out + g(out)                 a linear layer, a feed-forward module, a block
    under     z                  →  base(z + g(base(z)))         the norm behind a residual sum (BERT)
    beside    base(x)            →  base(x) + g(x)               a feed-forward module of its own (GPT-2, Llama, T5)
    into_sum  base(h, x)         →  base(h, x + g(x))            BERT's Output, which sums and normalizes (h = inner FF)
    Tap       up(x) … down(h)    →  down(h) + g(x)               a feed-forward that is two layers of its block (BART)

g is called once and sees hidden states (..., d) only: masks, caches and what a block returns beside them go through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import anatomy, shape
from featherweight.core.errors import InputError, Problem
from featherweight.core.flow import Flow, Watch, watched
from featherweight.core.host import base_modules
from featherweight.core.layout import same_list
from featherweight.core.site import Site, is_norm, kind_of

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
    """Carries the feed-forward's input x from its first layer to its last, row by row where rows go their own ways."""

    def __init__(self) -> None:
        self.kept: dict[int | None, Tensor] = {}  # row of the batch, None for all of it -> x

    def keep(self, base: Any, change: Change, x: Tensor) -> Tensor:
        self.kept |= {None: x} if base.rows is None else dict(zip(base.rows.tolist(), x, strict=True))
        return base(x)

    def give(self, base: Any, change: Change, h: Tensor) -> Any:
        rows = base.rows
        x = self.kept.pop(None) if rows is None else torch.stack([self.kept.pop(row) for row in rows.tolist()])
        return onto(base(h), lambda hidden: hidden + change(x))


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
            yield self.place(number, path, self.end(path, block))

    def end(self, path: str, block: nn.Module) -> Site:
        downs = self.inside("down", path)
        return downs[0] if len(downs) == 1 else self.experts(path, block)

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

    def besides(self, residual: bool = False) -> Iterator[Place]:
        """Around each feed-forward, from its input: one host, or its first layer and its last, which share a tap.

        With `residual` the input is taken before the norm in front of the feed-forward, where there is one.
        """
        flows: dict[str, Flow] = {}
        for number, (path, block) in self.blocks:
            end, holder = self.end(path, block), self.holder(path, block)
            if residual or holder is None:
                flows = flows or self.flows()
            if residual and not flows[path].norm:
                found = tapped(self.front(path, block, flows[path].front), end)
            elif holder is not None:
                found = [(holder, beside)]
            elif flows[path].summed:
                found = [(around(path, block, end), into_sum)]
            else:
                found = tapped(self.inside("up", path)[0], end)
            for site, law in found:
                yield self.place(number, path, site, law)

    def holder(self, path: str, block: nn.Module) -> Site | None:
        """The module that is all of a block's feed-forward and nothing else; None where the block calls two layers."""
        end = self.end(path, block)
        starts = [*self.inside("up", path), *self.inside("gate", path)]
        if kind_of(end.module) != "linear":
            return end
        modules, outer = dict(base_modules(block, path)), end.path
        while (outer := outer.rpartition(".")[0]) != path:
            called = not isinstance(modules[outer], nn.ModuleList | nn.ModuleDict)
            if called and any(s.path.startswith(f"{outer}.") for s in starts):
                return Site(outer, modules[outer], "mlp")
        return None

    def front(self, path: str, block: nn.Module, norm: str) -> Site:
        if not norm:
            raise InputError(Problem("no norm in front of this block's feed-forward", path, fix='reads="input"'))
        return Site(f"{path}.{norm}", dict(base_modules(block))[norm], "norm")

    def flows(self) -> dict[str, Flow]:
        """How hidden states flow through each block, as seen in the first block of its list."""
        blocks = dict(self.there.blocks)
        firsts = {path: next(p for p in blocks if same_list(p, path)) for _, (path, _) in self.blocks}
        watches = []
        for path in sorted(set(firsts.values())):
            end, ups = self.end(path, blocks[path]), self.inside("up", path)
            parent = around(path, blocks[path], end)
            start = ups[0].module if ups else end.module
            watches.append(Watch(path, blocks[path], start, None if parent.path == path else parent.module))
        seen = watched(self.model, watches, blocks)
        return {path: seen[first] for path, first in firsts.items()}


def around(path: str, block: nn.Module, site: Site) -> Site:
    """The module that a site of a block is a child of."""
    parent = site.path.rpartition(".")[0]
    return Site(parent, dict(base_modules(block, path))[parent], "mlp")


def tapped(start: Site, end: Site) -> list[tuple[Site, Law]]:
    """From the input of `start` to the output of `end`."""
    tap = Tap()
    return [(Site(start.path, start.module, "tap"), tap.keep), (end, tap.give)]

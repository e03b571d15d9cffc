"""Blocks driven one after another: what a model gives its blocks is recorded once for each batch, and what a block
makes of it goes to the next, so that calibration runs each block a few times and not the whole model.

    recorded    embed -> b0 -> b1 -> b2 -> head        b0: (x, mask)    b1: (output 0 of b0, mask) ...
    driven      b0, with its codes -> b1, being seen

A recorded argument is an output of the block before or a value. Gradients tell what else depends on a block: outputs
are made to ask for one, so an argument that asks for one and is no output was made from one between the blocks. Such
models, and those that call blocks out of order or hand them a cache, are not driven but run whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Undrivable(Exception):
    """Why the blocks of a chain cannot be run without the model around them."""


@dataclass(frozen=True)
class Output:
    """An argument that is this output of the block before."""

    index: int


@dataclass
class Call:
    """How one block is called: its arguments, flat, each a value or an Output."""

    leaves: list[Any]
    spec: TreeSpec


@dataclass
class Recorder:
    """One batch's way through the blocks of a chain."""

    blocks: Sequence[nn.Module]
    calls: list[Call] = field(default_factory=list)
    made: list[tuple[Any, int]] = field(default_factory=list)  # what the block before gave, and its version
    kept: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)  # id -> a value, the copy kept, version

    def before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        if len(self.calls) == len(self.blocks) or self.blocks[len(self.calls)] is not block:
            raise Undrivable("blocks are not called once each, in order")
        leaves, spec = flat((args, tuple(kwargs.items())))
        self.calls.append(Call([self.source(leaf) for leaf in leaves], spec))
        torch.set_grad_enabled(False)
        args, items = tree_unflatten([x.detach() if isinstance(x, Tensor) else x for x in leaves], spec)
        return args, dict(items)

    def source(self, leaf: Any) -> Any:
        if isinstance(leaf, PLAIN):
            return leaf
        if not isinstance(leaf, Tensor):
            raise Undrivable(f"a block is given a {type(leaf).__name__}")
        for i, (output, version) in enumerate(self.made):
            if output is leaf and leaf._version == version:
                return Output(i)
        if id(leaf) not in self.kept:
            if leaf.requires_grad and self.calls:
                raise Undrivable("an argument is made from outputs between blocks")
            self.kept[id(leaf)] = leaf, leaf.detach(), leaf._version
        return self.kept[id(leaf)][1]

    def after(self, block: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = flat(output)
        if not all(isinstance(x, PLAIN) or (isinstance(x, Tensor) and x.is_floating_point()) for x in leaves):
            raise Undrivable("a block gives something that gradients cannot follow")
        if any(isinstance(x, Tensor) and x._version != version for x, version in self.made):
            raise Undrivable("a block writes to its arguments")
        torch.set_grad_enabled(len(self.calls) < len(self.blocks))
        asking = [x.detach().requires_grad_() * 1 if isinstance(x, Tensor) else x for x in leaves]
        self.made = [(x, x._version if isinstance(x, Tensor) else 0) for x in asking]
        return tree_unflatten(asking, spec)

    def finished(self) -> list[Call]:
        if len(self.calls) < len(self.blocks):
            raise Undrivable("blocks are left out")
        if any(leaf._version != version for leaf, _, version in self.kept.values()):
            raise Undrivable("an argument is written to")
        return self.calls


def flat(tree: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves; lists and mappings are leaves too, since a block may add to them."""
    return tree_flatten(tree, is_leaf=lambda x: isinstance(x, list | dict))


def record(blocks: Sequence[nn.Module], run: Callable[[], None]) -> list[Call]:
    """How `run`, one pass of the model, calls each of the blocks. Raises Undrivable."""
    recorder = Recorder(blocks)
    hooks = [b.register_forward_pre_hook(recorder.before, with_kwargs=True) for b in blocks]
    hooks += [b.register_forward_hook(recorder.after) for b in blocks]
    try:
        with torch.enable_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.finished()


@dataclass
class Chain:
    """Blocks, how each batch calls them, and the outputs that wait for the next block."""

    blocks: Sequence[nn.Module]
    calls: list[list[Call]]  # by batch, by block
    waiting: list[list[Any]]

    @classmethod
    def of(cls, blocks: Sequence[nn.Module], runs: Sequence[Callable[[], None]]) -> "Chain":
        """`runs`: one pass of the model for each batch. Raises Undrivable."""
        return cls(blocks, [record(blocks, run) for run in runs], [[] for _ in runs])

    def run(self, number: int, batch: int) -> Any:
        """One block over what waits for it."""
        call, waiting = self.calls[batch][number], self.waiting[batch]
        leaves = [waiting[x.index] if isinstance(x, Output) else x for x in call.leaves]
        args, items = tree_unflatten(leaves, call.spec)
        return self.blocks[number](*args, **dict(items))

    def step(self, number: int) -> None:
        """Let every batch pass a block; only what the next one reads is kept."""
        for batch, calls in enumerate(self.calls):
            outputs = flat(self.run(number, batch))[0]
            following = calls[number + 1].leaves if number + 1 < len(calls) else []
            read = {x.index for x in following if isinstance(x, Output)}
            self.waiting[batch] = [x if i in read else None for i, x in enumerate(outputs)]
            calls[number].leaves = []  # it is not called again

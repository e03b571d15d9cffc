"""One training step, run over tensors without storage: the loss of the task, its backward pass, the optimizer's update.

    base, adapters, optimizer states  ──►  forward  ──►  backward  ──►  update        peak of what is alive in between

The code is that of training: the same adapters, kernels, checkpointing and optimizer. A long run of equal blocks is
traced at two depths and continued along the straight line through both.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from featherweight.core.host import Adapters, base_modules
from featherweight.plan.live import Live
from featherweight.plan.shell import blocks_of, fake

DEPTHS = (2, 4)  # blocks of a run that is cut
WHOLE = 12  # runs up to this length are traced whole
CODE = "kernels' code"
PER_PRODUCT = (
    590_000  # bytes that a CPU's library keeps for each shape of 16-bit product: benchmarks/plan.py measures it
)
BASE, CODES, ADAPTERS, OPTIMIZER = "weights", "codes and scales", "adapters", "optimizer states"
GRADIENTS, ACTIVATIONS, LOSS, BACKWARD, BATCH = "gradients", "activations", "logits and loss", "backward pass", "batch"


@dataclass(frozen=True)
class Trace:
    """Bytes by component when the step is at its peak, bytes that stay between steps, and operations of the step."""

    peak: Mapping[str, float]
    resting: Mapping[str, float]
    flops: float
    forward_flops: float

    def along(self, other: "Trace", t: float) -> "Trace":
        """self + t · other, component by component."""

        def line(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
            return {k: a.get(k, 0) + t * b.get(k, 0) for k in dict.fromkeys([*a, *b])}

        return Trace(line(self.peak, other.peak), line(self.resting, other.resting), self.flops + t * other.flops,
                     self.forward_flops + t * other.forward_flops)  # fmt: skip


Job = Callable[[nn.Module, Live, dict[str, Any]], None]  # a computation; it restarts the peak where it begins


def trace(model: nn.Module, jobs: Mapping[str, Job]) -> dict[str, Trace]:
    """The trace of each job on a meta model, which is used up: long runs of equal blocks are cut, deep ones first."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    runs = equal_runs(model)
    long = {i: len(span) for i, (_, span) in enumerate(runs) if len(span) > WHOLE}
    depths = dict.fromkeys(long, DEPTHS[1])
    cut(runs, depths)
    fake(model, mode)
    before = found = traced(model, mode, jobs)
    for i, length in long.items():  # one run after the other, each along its own slope
        depths[i] = DEPTHS[0]
        cut(runs, depths)
        now = traced(model, mode, jobs)
        deeper = (length - DEPTHS[1]) / (DEPTHS[1] - DEPTHS[0])
        found = {name: found[name].along(before[name].along(now[name], -1.0), deeper) for name in jobs}
        before = now
    return found


Run = tuple[nn.ModuleList, list[nn.Module]]


def equal_runs(model: nn.Module) -> list[Run]:
    """(list, blocks) of every longest run of blocks alike in classes, shapes, dtypes and what trains."""
    runs: list[Run] = []
    for blocks in blocks_of(model):
        for _, group in groupby(blocks, signature):
            runs.append((blocks, list(group)))
    return runs


def signature(block: nn.Module) -> Any:
    tensors = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in block.named_parameters()]
    return type(block), tuple(tensors), tuple((n, tuple(b.shape), b.dtype) for n, b in block.named_buffers())


def cut(runs: list[Run], depths: Mapping[int, int]) -> None:
    """Leave of each run that is named its first blocks, in place."""
    lost: dict[int, tuple[nn.ModuleList, list[nn.Module]]] = {}
    for i, kept in depths.items():
        blocks, span = runs[i]
        lost.setdefault(id(blocks), (blocks, []))[1].extend(span[kept:])
        runs[i] = blocks, span[:kept]
    for blocks, gone in lost.values():
        stay = [b for b in blocks if not any(b is g for g in gone)]
        del blocks[len(stay) :]
        for position, block in enumerate(stay):
            blocks[position] = block


def traced(model: nn.Module, mode: FakeTensorMode, jobs: Mapping[str, Job]) -> dict[str, Trace]:
    """The traces of jobs at the present depth."""
    found = {}
    for name, job in jobs.items():
        live = Live()
        with torch.random.fork_rng(devices=[]), mode, live, places(model, live) as marks:
            count(model, live)
            job(model, live, marks)
        peak = by_component(live.at_peak) | {CODE: float(len(live.products) * PER_PRODUCT)}
        found[name] = Trace(peak, marks["resting"], live.flops, marks["forward"])
    return found


def count(model: nn.Module, live: Live) -> None:
    """Count what is there before any step, by what it is."""
    for _, module in base_modules(model):
        quantized = hasattr(module, "packed_names")
        for p in module._parameters.values():
            if p is not None:
                live.take(p, BASE)
        for b in module._buffers.values():
            if b is not None:
                live.take(b, CODES if quantized else BASE)
        if isinstance(held := module._modules.get("adapters"), Adapters):
            for tensor in (*held.parameters(), *held.buffers()):
                live.take(tensor, ADAPTERS)


@contextmanager
def places(model: nn.Module, live: Live) -> Iterator[dict[str, Any]]:
    """Tag what is made inside of a block with the block, and what comes after the last one with the loss."""
    blocks = [b for blocks in blocks_of(model) for b in blocks]
    handles = []
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1
        handles.append(block.register_forward_pre_hook(lambda *_, i=i: setattr(live, "tag", f"block {i}")))
        after = LOSS if last else ACTIVATIONS
        handles.append(block.register_forward_hook(lambda *_, after=after: setattr(live, "tag", after)))
    try:
        yield {"resting": {}, "forward": 0}
    finally:
        for handle in handles:
            handle.remove()


def by_component(tags: Counter[str]) -> dict[str, float]:
    """Blocks summed up."""
    found: Counter[str] = Counter()
    for tag, size in tags.items():
        found[ACTIVATIONS if tag.startswith("block ") else tag] += size
    return {k: float(v) for k, v in found.items() if v}

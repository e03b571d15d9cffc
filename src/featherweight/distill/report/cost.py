"""What a model costs: parameters, bytes, and seconds of a forward beside another model's.

Times mean little on a shared machine, ratios of neighbors in time something: rounds run every model once, in
alternating order; a ratio is the median over rounds with its quartiles.
"""

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.encoded import encoded
from featherweight.core.host import base_modules
from featherweight.core.state import state
from featherweight.core.switch import switch_of
from featherweight.distill.report.compared import Interval
from featherweight.evaluate.run import answering
from featherweight.tasks.modes import evaluating

BATCHES = (1, 8)
ROUNDS, WARM = 15, 2


def parameters(model: nn.Module) -> tuple[int, int]:
    """(of the transformer with its heads and active adapters, of embedding tables), each tensor once: a head tied to
    the embedding is the embedding. Codes count as what they stand for."""
    tables, rest, seen = 0, 0, set[int]()
    modules = sorted(base_modules(model), key=lambda found: not isinstance(found[1], nn.Embedding))
    for _, module in modules:
        kept = encoded(module)
        held: dict[str, tuple[Tensor, int]] = {
            name: (p, p.numel()) for name, p in module._parameters.items() if p is not None
        }
        held |= {name: (it.kept[0], it.count) for name, it in kept.items()}
        for tensor, count in held.values():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tables, rest = (tables + count, rest) if isinstance(module, nn.Embedding) else (tables, rest + count)
    return rest + sum(t.numel() for t in added(model)), tables


def stored(model: nn.Module) -> int:
    """Bytes of the tensors that saving writes, each once; those of active adapters too."""
    seen: dict[int, int] = {}
    for _, module in base_modules(model):
        buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for tensor in (*module._parameters.values(), *buffers.values()):
            if tensor is not None:
                seen[id(tensor)] = tensor.nbytes
    return sum(seen.values()) + sum(t.nbytes for t in added(model))


def added(model: nn.Module) -> list[Tensor]:
    """The tensors of active adapters."""
    return [t for name in switch_of(model).active for t in state(model, name).values()]


def latencies(models: Mapping[str, nn.Module], batch: Mapping[str, Tensor], task: Any,
              rounds: int = ROUNDS) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of a forward on one batch, each model in each round."""
    posed = {}
    for name, model in models.items():
        device = next(model.parameters()).device
        with evaluating(model):
            posed[name] = task.pose(model, {k: t.to(device) for k, t in batch.items()})[0]
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for turn in range(-WARM, rounds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            seconds = timed(models[name], posed[name])
            if turn >= 0:
                times[name].append(seconds)
    return times


def timed(model: nn.Module, given: Mapping[str, Tensor]) -> float:
    with evaluating(model), answering(model):
        wait(model)
        start = time.perf_counter()
        model(**given)
        wait(model)
        return time.perf_counter() - start


def wait(model: nn.Module) -> None:
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Interval:
    """How many times as fast: the median over rounds of slow/fast, and its quartiles."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(slow, fast, strict=True)], n=4)
    return Interval(middle, low, high)


def hardware(model: nn.Module) -> str:
    """What it ran on."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [platform.processor() or platform.machine()])[0]}, {torch.get_num_threads()} threads"

"""Common tools: paired interleaved times, memory that a step adds, one JSON per claim.

A time means little on a shared machine, a ratio of neighbors in time means something: rounds run every contender
once, in alternating order, and the ratio is the median over rounds of (ours / peer) with its quartiles.

Memory is the peak resident set while one step runs less the resident set just before it, in a fresh process for each
contender. The process runs with a fixed mmap threshold (`MALLOC_MMAP_THRESHOLD_`), so that every tensor from 64 KB up
is its own mapping and is given back when freed; `VmHWM` is reset by writing 5 to /proc/self/clear_refs (Linux).
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DATA = Path(os.environ.get("FEATHERWEIGHT_DATA") or ROOT / "../shared/data")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def paired(contenders: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2,
           clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each contender in each round; the order turns around from round to round. Where one thread computes,
    `time.process_time` leaves out what neighbors take."""
    for _ in range(warmup):
        for call in contenders.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.freeze()  # what is there already is not looked through again between calls
    for turn in range(rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            gc.collect()
            start = clock()
            contenders[name]()
            times[name].append(clock() - start)
    gc.unfreeze()
    return times


def compare(times: Mapping[str, list[float]], ours: str = "featherweight") -> dict[str, Any]:
    """Medians in seconds, and for each peer the median and quartiles of ours / peer over rounds."""
    result: dict[str, Any] = {f"{name}_s": round(statistics.median(t), 5) for name, t in times.items()}
    for peer in times:
        if peer != ours:
            low, middle, high = statistics.quantiles(
                [a / b for a, b in zip(times[ours], times[peer], strict=True)], n=4
            )
            result[f"ratio_to_{peer}"] = round(middle, 4)
            result[f"ratio_to_{peer}_quartiles"] = [round(low, 4), round(high, 4)]
    return result | {"rounds": len(times[ours])}


def stepper(model: Any, loss: Callable[[], Any]) -> Any:
    """A call that trains `model` one step (forward, backward, AdamW) on what `loss` gives, and returns its value;
    `.trained` is the number of parameters that train."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    step.trained = sum(p.numel() for p in trained)  # type: ignore[attr-defined]
    return step


def tasks_loss(task: Any, model: Any, batch: Any) -> Callable[[], Any]:
    """A task's mean loss a unit of one batch, as a call."""

    def loss() -> Any:
        total, units = task.loss(model, batch)
        return total / units

    return loss


def added_memory(step: Callable[[], Any], warmup: int = 2, repeats: int = 3) -> int:
    """Bytes of peak resident memory that one step adds, the median of some; run it in a process made by
    `child(..., env=ALLOCATOR)`."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        raise RuntimeError("added_memory: run it through `child(..., env=ALLOCATOR)`")
    for _ in range(warmup):
        step()
    found = []
    for _ in range(repeats):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        step()
        found.append(status("VmHWM") - before)
    return int(statistics.median(found))


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")


def child(script: str, *args: str, env: Mapping[str, str] | None = None) -> Any:
    """Run a script in a fresh interpreter; its last line on stdout is JSON."""
    done = subprocess.run([sys.executable, script, *args], env=os.environ | dict(env or {}),
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} {' '.join(args)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures, and nothing that names a place."""
    from importlib.metadata import version

    import torch

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "isa": torch.backends.cpu.get_cpu_capability(), **packages}


def threads() -> None:
    """Use two threads, the machine the targets are stated for, unless OMP_NUM_THREADS says otherwise."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What a benchmark of cells is asked: which ones, how many rounds, and whether those in the JSON are taken anew."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fresh", action="store_true")
    return parser


def fill(name: str, cells: Mapping[str, Callable[[int | None], dict[str, Any]]], options: argparse.Namespace,
         about: Callable[[], Mapping[str, Any]] | None = None) -> None:  # fmt: skip
    """Measure what results/<name>.json has not yet, by the name of each cell; written after each."""
    found = load(name).get("cells", {})
    if options.fresh:  # what is not asked for stays as it was
        found = {cell: result for cell, result in found.items() if options.only not in cell}
    for cell, measure in cells.items():
        if options.only in cell and cell not in found:
            found[cell] = measure(options.rounds)
            print(cell, json.dumps(found[cell]), flush=True)
            write(name, {"machine": (about or machine)(), "cells": found})


def load(name: str) -> dict[str, Any]:
    """An earlier result, {} where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def write(name: str, result: Mapping[str, Any]) -> None:
    """Write results/<name>.json whole: a stopped run leaves the former file or the new one."""
    RESULTS.mkdir(exist_ok=True)
    staged = RESULTS / f".{name}.json"
    staged.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    staged.rename(RESULTS / f"{name}.json")

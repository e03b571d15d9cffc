"""The other peaks: loading, quantizing, writing on, merging and saving; and a step in earnest where time is wanted."""

import gc
from collections import Counter
from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featherweight.core import state as core
from featherweight.core.encoded import encoded
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.merge import Rewritten, checked
from featherweight.core.switch import switch_of
from featherweight.plan import shell
from featherweight.plan.live import Live
from featherweight.plan.traced import BASE, Job
from featherweight.plan.training import arithmetic, expect, placed
from featherweight.tasks import Task
from featherweight.tasks.heads import INPUTS
from featherweight.train.optimizers import optimizer, parameters
from featherweight.train.settings import Settings

CACHE = "key/value cache"
STEPS = 3  # of a probe, after one that warms up


def answering(task: Task, batch: Mapping[str, torch.Tensor]) -> Job:
    """What the task predicts of a batch, without gradients; a model that writes text reads it, keeps its keys and
    values and goes on by a token.
    """

    def predicted(model: nn.Module, live: Live, marks: dict[str, Any]) -> None:
        model.eval()
        rows = {name: tensor for name, tensor in placed(batch, live).items() if name != "labels"}
        marks["resting"] = {}
        live.restart()
        with torch.no_grad(), Plain():
            task.predict(model, rows, Wordless())
        marks["forward"] = live.flops

    def written(model: nn.Module, live: Live, marks: dict[str, Any]) -> None:
        model.eval()
        rows = {name: tensor for name, tensor in placed(batch, live).items() if name in INPUTS}
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            rows["decoder_input_ids"] = rows["input_ids"]
        live.restart()
        with torch.no_grad():
            out = model(**rows, **known(model, {"use_cache": True, "logits_to_keep": 1}))
            cache = getattr(out, "past_key_values", None)
            for tensor in tensors_of(cache):
                live.retag(tensor, CACHE)
            marks["resting"] = {CACHE: float(live.now[CACHE])}
            marks["forward"] = live.flops
            if cache is not None:
                live.flops = 0
                model(**token(rows), past_key_values=cache, use_cache=True)

    return written if task.generates else predicted


def token(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs of one more token of every row."""
    if "decoder_input_ids" in rows:
        return rows | {"decoder_input_ids": rows["decoder_input_ids"][:, :1]}
    ids = rows["input_ids"]
    return {"input_ids": ids[:, :1], "attention_mask": torch.ones(len(ids), ids.shape[1] + 1, dtype=torch.long)}


class Plain(TorchFunctionMode):
    """Tensors without storage become arrays of zeros where a prediction is read as plain values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy:
            return np.zeros(tuple(args[0].shape), dtype=np.float32)
        return func(*args, **(kwargs or {}))


class Wordless:
    """Stands in for the tokenizer where tokens without values are read: ids, but no words."""

    mask_token_id = 0

    def decode(self, ids: Any) -> str:
        return ""

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        return [""] * len(rows)


def known(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the model's forward names."""
    from inspect import signature

    names = signature(model.forward).parameters
    return {k: v for k, v in options.items() if k in names}


def tensors_of(cache: Any) -> list[torch.Tensor]:
    """Every tensor that a transformers cache holds."""
    if cache is None:
        return []
    parts = [getattr(cache, n) for n in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, n)] or [
        cache
    ]
    return [
        t for part in parts for layer in part.layers for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor)
    ]


def merging(stored: torch.dtype) -> Job:
    """`fw merge`: the base stays in its file (`interop/filed.py`), but for codes; the weights of a host are read, in
    float32, merged and checked, one host after the other; then tensor after tensor is written, in `stored`, the file's
    dtype.
    """

    def merged(model: nn.Module, live: Live, marks: dict[str, Any]) -> None:
        filed = {id(t): t for _, m in base_modules(model) for t in own(m)}
        live.forget(filed.values())
        reads: Counter[int] = Counter()

        def see(found: Rewritten) -> None:
            for host, name, W in found:
                reads[id(host)] += 0 if name in encoded(host) else W.numel() * W.element_size()

        checked(model, see)
        with live.tagged(BASE):
            host = torch.empty(max(reads.values(), default=0), dtype=torch.uint8)
            live.restart()
            checked(model)
            del host
            largest = max((t.numel() for t in filed.values()), default=0)
            torch.empty(largest, dtype=stored)
        marks["resting"] = {}

    return merged


def own(module: nn.Module) -> list[torch.Tensor]:
    """A module's tensors that are no codes."""
    codes = {id(t) for e in encoded(module).values() for t in e.kept}
    held = (*module._parameters.values(), *module._buffers.values())
    return [t for t in held if t is not None and id(t) not in codes]


def peaks(model: nn.Module, quantized: bool) -> dict[str, int]:
    """Bytes at the peaks that need no trace: of loading, quantizing and saving."""
    frozen, biggest = shell.frozen_bytes(model), shell.largest_tensor(model)
    found = {"load": frozen + biggest}
    if quantized:
        found["quantize"] = frozen + biggest
    if adapter := shell.adapter_bytes(model):
        found["save"] = frozen + 2 * adapter
    return found


def probe(model: nn.Module, task: Task, chosen: Settings, batch: Mapping[str, torch.Tensor]) -> float:
    """Seconds of a training step on this machine: the median of three, on random weights and one batch.

    Raises InputError where this machine has too little memory for the model's weights alone.
    """
    need, free = shell.frozen_bytes(model), available()
    if need > 0.8 * free:
        raise InputError(Problem("too large to be tried here", "probe", f"at most {0.8 * free / 1e9:.1f} GB of weights",
                                 f"{need / 1e9:.1f} GB", "plan without the probe"))  # fmt: skip
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.zero_()
    model.train()
    switch = switch_of(model)
    trained = [(switch.attached[n].method, core.adapters(model, n)) for n in switch.active if switch.trains(n)]
    rule = optimizer(chosen.optimizer, trained, None, 0.0)
    times = []
    expect(model)
    for _ in range(STEPS + 1):
        gc.collect()
        began = perf_counter()
        with arithmetic(chosen.precision):
            loss, _ = task.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters(rule), 1.0)
        rule.step()
        rule.zero_grad(set_to_none=True)
        times.append(perf_counter() - began)
    return median(times[1:])


def available() -> int:
    """Bytes of memory that are free on this machine."""
    from pathlib import Path

    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InputError(Problem("this system does not say how much memory is free", "probe", fix="plan without the probe"))

"""Time by number format: the same linear layer in every one of them, on a CPU.

    python benchmarks/formats.py                   all cells, about 2 minutes on one core; goes on where it stopped
    python benchmarks/formats.py --only layer      cells whose name contains a word
    python benchmarks/formats.py --fresh           measure again

layer-M        M rows through layers of 2048 x 5632 (eight of them up to 32 rows: more than the caches hold), in
               evaluation, inputs in the dtype that is named. Each format's time over float32's, less is faster.
activations-M  int8 products whose inputs are quantized by token (dynamic) or by a range known beforehand (static),
               symmetric (Absmax) and affine (ZeroPoint): dynamic over static. `quantizing` is that part alone.
quantiles-N    N numbers to 4 bits by their own quantiles: sorted all, or a sample of 2^20 of them (what `Quantile`
               does); NF4 beside, whose quantiles are known.

One thread, and its CPU time: what neighbors take is left out. Rounds are interleaved, ratios are medians over rounds.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import _paired
import torch
from torch import nn

import featherweight.kernels  # noqa: F401  # registers native code
from featherweight.quant import FP4, NF4, Absmax, LLMInt8, Quantile, ZeroPoint, quantile
from featherweight.quant.quantized import become_quantized

WIDE, OUT, ROWS = 2048, 5632, (1, 32, 512)
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CODES: dict[str, tuple[Any, torch.dtype]] = {
    "int8 dynamic, bf16": (Absmax(activations="dynamic"), torch.bfloat16),
    "LLM.int8(), bf16": (LLMInt8(), torch.bfloat16),
    "int8 weights, bf16": (Absmax(), torch.bfloat16),
    "NF4, bf16": (NF4(), torch.bfloat16),
    "NF4, fp32": (NF4(), torch.float32),
    "NF4 double, bf16": (NF4(double=True), torch.bfloat16),
    "FP4, bf16": (FP4(), torch.bfloat16),
}
Calls = dict[str, Callable[[], Any]]


def layer(i: int, dtype: torch.dtype, scheme: Any = None, seen: torch.Tensor | None = None) -> nn.Module:
    made = nn.Linear(WIDE, OUT, bias=False, device="meta")
    W = torch.randn(OUT, WIDE, generator=torch.Generator().manual_seed(i)) * 0.02
    made.weight = nn.Parameter(W.to(dtype), requires_grad=False)
    if scheme is None:
        return made.eval()
    watch = None
    if seen is not None and scheme.calibrated:
        watch = scheme.watch(WIDE)
        watch.add(seen)
    return become_quantized(made, scheme, scheme.encode(W, watch), dtype).eval()


def inputs(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDE, generator=torch.Generator().manual_seed(99))


def through(layers: list[nn.Module], x: torch.Tensor) -> Callable[[], Any]:
    @torch.no_grad()
    def call() -> torch.Tensor:
        return [one(x) for one in layers][-1]

    return call


def layers(rows: int) -> Calls:
    count, x = 8 if rows <= 32 else 1, inputs(rows)
    floats = {name: through([layer(i, d) for i in range(count)], x.to(d)) for name, d in FLOATS.items()}
    codes = {name: through([layer(i, d, scheme) for i in range(count)], x.to(d)) for name, (scheme, d) in CODES.items()}
    exact = floats["fp32"]()
    for name, call in (floats | codes).items():
        off = float((call().float() - exact).norm() / exact.norm())
        if not off < 0.15:
            raise RuntimeError(f"{name} is off by {off}")
    return floats | codes


def activations(rows: int) -> Calls:
    x, found = inputs(rows), {}
    for kind in (Absmax, ZeroPoint):
        for how in ("dynamic", "static"):
            made: Any = layer(0, torch.bfloat16, kind(activations=how), x)
            name = f"{kind.__name__} {how}"
            found[name] = through([made], x.bfloat16())
            found[f"{name}, quantizing"] = partial(made.scheme.quantized, x.bfloat16(), made.packed)
    return found


def quantiles(count: int) -> Calls:
    W = torch.randn(count, generator=torch.Generator().manual_seed(0))

    def exact() -> Any:
        before, quantile.SAMPLE = quantile.SAMPLE, count
        try:
            return Quantile().encode(W)
        finally:
            quantile.SAMPLE = before

    apart = float((exact()["table"] - Quantile().encode(W)["table"]).abs().max())
    if not apart < 0.02:
        raise RuntimeError(f"the sample's levels are off by {apart}")
    return {"sample": lambda: Quantile().encode(W), "exact": exact, "NF4": lambda: NF4().encode(W)}


def measure(make: Callable[[], Calls], first: str, usual: int, rounds: int | None) -> dict[str, Any]:
    """Seconds of each, and its median ratio to the first with quartiles."""
    times = _paired.paired(make(), rounds or usual, clock=time.process_time)
    found: dict[str, Any] = {}
    for name, taken in times.items():
        form = _paired.compare({name: taken, first: times[first]} if name != first else {name: taken}, ours=name)
        found[name] = {"s": form[f"{name}_s"]}
        if name != first:
            found[name] |= {"ratio": form[f"ratio_to_{first}"], "quartiles": form[f"ratio_to_{first}_quartiles"]}
    if "Absmax static" in times:
        for kind in ("Absmax", "ZeroPoint"):
            for part in ("", ", quantizing"):
                one, other = f"{kind} dynamic{part}", f"{kind} static{part}"
                form = _paired.compare({one: times[one], other: times[other]}, ours=one)
                found[one]["over static"] = [form[f"ratio_to_{other}"], *form[f"ratio_to_{other}_quartiles"]]
    return found | {"first": first, "rounds": rounds or usual}


CELLS: dict[str, Callable[[int | None], dict[str, Any]]] = {
    **{f"layer-{m}": partial(measure, partial(layers, m), "fp32", 21 if m <= 32 else 9) for m in ROWS},
    **{f"activations-{m}": partial(measure, partial(activations, m), "Absmax static", 15) for m in (32, 512)},
    "quantiles-16777216": partial(measure, partial(quantiles, 1 << 24), "sample", 5),
}


def main() -> None:
    options = _paired.arguments(__doc__).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _paired.fill("formats", CELLS, options, machine)


def machine() -> dict[str, Any]:
    from featherweight.kernels import native

    return _paired.machine() | {"native": native.available()[1], "clock": "CPU time of one thread"}


if __name__ == "__main__":
    main()

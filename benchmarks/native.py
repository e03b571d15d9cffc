"""Native kernels against bitsandbytes on a CPU, and against the memory's bandwidth measured in the same rounds.

    python benchmarks/native.py                   all cells, about 3 minutes on 2 cores; goes on where it stopped
    python benchmarks/native.py --only gemv       cells whose name contains a word
    python benchmarks/native.py --fresh           measure again

encode-*   NF4, block 64, of a 4096 x 4096 matrix. Target: bitsandbytes takes >= 40 times as long.
decode-*   the same matrix back. Ours as every product decodes, into a buffer that stays; `fresh` is into new memory, as
           theirs always is. Target: >= 5 times.
gemv-M     M rows of bfloat16 through eight NF4 weights of 4096 x 4096 (75 MB, more than the caches hold), their layer
           in eval mode. Targets: M = 1 reads codes and scales at >= 90 % of the bandwidth of a dot product over 256 MB;
           M = 2 to 64 never takes longer than theirs.
rows, rescale   int8: quantizing 1024 x 4096 activations by row, and int32 sums back to bfloat16, against plain torch.

The results of the two sides are compared before anything is timed.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import _paired
import torch

import featherweight.kernels  # noqa: F401  # registers native code
from featherweight.kernels import native
from featherweight.quant import NF4, codebooks, ops
from featherweight.quant.scratch import scratch

SIZE, LAYERS, ROWS = 4096, 8, (1, 2, 3, 4, 8, 16, 32, 64)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
Calls = dict[str, Callable[[], Any]]


def agree(ours: torch.Tensor, theirs: torch.Tensor, far: float = 0.0) -> None:
    gap = (ours.float() - theirs.float()).abs().max().item()
    if not gap <= far:
        raise RuntimeError(f"the two sides differ by {gap}")


def matrix(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def encode(dtype: torch.dtype) -> Calls:
    from bitsandbytes.functional import quantize_4bit

    W, table = matrix(dtype), codebooks.levels("nf4", torch.empty(0))
    apart = ops.encode4(W, table, 64)[0] != quantize_4bit(W, blocksize=64, quant_type="nf4")[0].view(-1)
    agree(apart.float().mean(), torch.zeros(()), 1e-5)  # theirs multiplies by 1 / absmax, ours divides: ties may part
    return {
        "featherweight": lambda: ops.encode4(W, table, 64),
        "bitsandbytes": lambda: quantize_4bit(W, blocksize=64, quant_type="nf4"),
    }


def decode(dtype: torch.dtype, double: bool = False) -> Calls:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    W = matrix(dtype)
    scheme = NF4(double=double)
    theirs, state = quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=double)
    packed = scheme.encode(W) if double else {"codes": theirs.view(-1), "absmax": state.absmax}
    # doubly quantized scales part by a step of the map where theirs round otherwise
    agree(scheme.decode(packed, W.shape, dtype), dequantize_4bit(theirs, state), 0.04 if double else 0)

    def kept() -> None:
        with torch.no_grad(), scratch():
            scheme.decode(packed, (SIZE, SIZE), dtype)

    return {
        "featherweight": kept,
        "bitsandbytes": lambda: dequantize_4bit(theirs, state),
        "fresh": lambda: scheme.decode(packed, (SIZE, SIZE), dtype),
    }


def gemv(rows: int) -> Calls:
    import bitsandbytes as bnb

    weights = [matrix(torch.bfloat16, i) for i in range(LAYERS)]
    table = codebooks.levels("nf4", torch.empty(0))
    packed = [ops.encode4(W, table, 64) for W in weights]
    layers = []
    for W in weights:
        layer = bnb.nn.Linear4bit(SIZE, SIZE, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(W, requires_grad=False, quant_type="nf4", blocksize=64,
                                         compress_statistics=False)  # fmt: skip
        layers.append(layer.to("cpu").eval())
    x = matrix(torch.bfloat16, 99)[:rows].contiguous()
    long = [torch.randn(32 << 20) for _ in range(2)]

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return [ops.linear4(x, *p, table, 64, (SIZE, SIZE), None) for p in packed][-1]

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return [layer(x) for layer in layers][-1]

    agree(ours(), theirs(), 3.0)  # sums of 4096 products of two N(0, 1): up to 300, in bfloat16
    bandwidth: Calls = {"bandwidth": lambda: torch.dot(*long)} if rows == 1 else {}
    return {"featherweight": ours, "bitsandbytes": theirs} | bandwidth


def rows() -> Calls:
    x = matrix(torch.bfloat16)[:1024]
    agree(ops.quantize_rows(x)[0], ops.plain_quantize_rows(x, None)[0])
    return {"featherweight": lambda: ops.quantize_rows(x), "torch": lambda: ops.plain_quantize_rows(x, None)}


def rescale() -> Calls:
    acc = (matrix()[:1024] * 1e5).int()
    args = (acc, torch.rand(1024), torch.rand(SIZE), torch.rand(SIZE), torch.bfloat16)
    agree(ops.rescale(*args), ops.plain_rescale(*args))
    return {"featherweight": lambda: ops.rescale(*args), "torch": lambda: ops.plain_rescale(*args)}


CELLS: dict[str, tuple[Callable[[], Calls], int]] = {
    **{f"encode-{name}": (partial(encode, dtype), 5) for name, dtype in DTYPES.items()},
    **{f"decode-{name}": (partial(decode, dtype), 21) for name, dtype in DTYPES.items()},
    "decode-double-bf16": (partial(decode, torch.bfloat16, True), 21),
    **{f"gemv-{m}": (partial(gemv, m), 15) for m in ROWS},
    "rows": (rows, 21),
    "rescale": (rescale, 21),
}


def measure(name: str, rounds: int | None) -> dict[str, Any]:
    make, usual = CELLS[name]
    times = _paired.paired(make(), rounds or usual)
    result = _paired.compare(times)
    peer = "torch" if "torch" in times else "bitsandbytes"
    result["peer_over_ours"] = round(1 / result[f"ratio_to_{peer}"], 2)
    elements = SIZE * SIZE
    if name.startswith(("encode", "decode")):
        result["elements_per_ns"] = round(elements / result["featherweight_s"] / 1e9, 2)
    if "bandwidth" in times:
        read = LAYERS * (elements // 2 + elements // 64 * 4)
        share = result["ratio_to_bandwidth"] * (2 * 4 * (32 << 20)) / read
        result |= {"gb_per_s": round(read / result["featherweight_s"] / 1e9, 2), "of_bandwidth": round(1 / share, 4)}
    return result


def main() -> None:
    options = _paired.arguments(__doc__).parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    _paired.fill("kernels", {name: partial(measure, name) for name in CELLS}, options, machine)


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    return _paired.machine() | {"bitsandbytes": version("bitsandbytes"), "native": native.available()[1]}


if __name__ == "__main__":
    main()

"""The scheme cases of the law suite, each format in the shapes that could break differently, and tensors to hold."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from featherweight.quant import FP4, NF4, Absmax, Blockwise, Half, Quantile, Scheme, ZeroPoint

SCHEMES: dict[str, Scheme] = {
    "half": Half(),
    "half-fp16": Half("fp16"),
    "absmax": Absmax(),
    "absmax-tensor": Absmax(per="tensor"),
    "absmax-64": Absmax(per=64),
    "absmax-7bits": Absmax(7, per="row"),
    "absmax-5bits-33": Absmax(5, per=33),
    "absmax-4bits": Absmax(4, per="row"),
    "absmax-4bits-64": Absmax(4, per=64),
    "absmax-3bits-tensor": Absmax(3, per="tensor"),
    "absmax-2bits": Absmax(2, per=32),
    "absmax-full": Absmax(4, per=32, full_range=True),
    "absmax-full-8bits": Absmax(per="row", full_range=True),
    "absmax-percentile": Absmax(4, per="row", clip=90),
    "absmax-mse": Absmax(4, per=32, clip="mse"),
    "zeropoint": ZeroPoint(),
    "zeropoint-tensor": ZeroPoint(per="tensor"),
    "zeropoint-64": ZeroPoint(4, per=64),
    "zeropoint-3bits": ZeroPoint(3, per="row"),
    "zeropoint-2bits-48": ZeroPoint(2, per=48),
    "zeropoint-float": ZeroPoint(4, per=64, zero="float"),
    "zeropoint-float-8bits": ZeroPoint(zero="float"),
    "zeropoint-percentile": ZeroPoint(4, per=64, clip=95),
    "zeropoint-mse": ZeroPoint(3, per="row", clip="mse"),
    "blockwise": Blockwise(),
    "blockwise-8bits": Blockwise(bits=8, block=128),
    "blockwise-3bits-double": Blockwise(bits=3, block=32, double=True),
    "blockwise-nf3": Blockwise(bits=3, table="nf"),
    "blockwise-nf2": Blockwise(bits=2, table="nf", block=100),
    "blockwise-af": Blockwise(table="af"),
    "blockwise-lloyd": Blockwise(table="lloyd", clip="mse"),
    "blockwise-dynamic": Blockwise(bits=8, table="dynamic", block=256),
    "quantile": Quantile(),
    "quantile-3bits": Quantile(3, block=4096),
    "quantile-percentile": Quantile(3, block=32, clip=95),
    "quantile-mse": Quantile(block=32, clip="mse"),
    "nf4": NF4(),
    "nf4-32": NF4(block=32),
    "nf4-7": NF4(block=7),
    "nf4-4096": NF4(block=4096),
    "nf4-double": NF4(double=True),
    "nf4-double-16": NF4(block=16, double=True),
    "nf4-percentile": NF4(clip=97),
    "fp4": FP4(),
    "fp4-double": FP4(block=128, double=True),
    "fp4-e2m1": FP4(variant="e2m1", block=32),
    "fp4-e3m0": FP4(variant="e3m0", block=80),
}

WIDTHS = (1, 2, 3, 7, 32, 48, 64, 80, 96, 100, 112, 160, 1200)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Vectors, matrices and stacks of matrices, of the widths that other libraries get wrong and of any other."""
    width = st.sampled_from(WIDTHS) | st.integers(1, 200)
    return st.one_of(
        st.tuples(width), st.tuples(st.integers(1, 24), width), st.tuples(st.integers(1, 3), st.integers(1, 5), width)
    )


def fill(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 weights of one kind."""
    x = torch.randn(shape, generator=generator)
    u = torch.rand(shape, generator=generator)
    made = {
        "normal": lambda: x * 0.02,
        "heavy": lambda: x / u.clamp_min(1e-3),
        "uniform": lambda: u * 2 - 1,
        "shifted": lambda: u + 3,
        "grid": lambda: (x * 7).round(),  # many ties
        "one hot": lambda: torch.zeros_like(x).flatten().index_fill_(0, torch.tensor(x.numel() // 2), 3.0).view(shape),
        "zeros": lambda: torch.zeros_like(x),
        "zeros in part": lambda: x * (u.flatten().sort().values.view(shape) > 0.5),
        "constant": lambda: torch.full_like(x, -0.3),
        "denormal": lambda: x * 1e-41,
        "tiny": lambda: x * 1e-37,
        "huge": lambda: x * 1e36,
        "many scales": lambda: x * 10 ** (u * 12 - 6).flatten().sort().values.view(shape),
    }
    return made[kind]()


KINDS = (
    "normal", "heavy", "uniform", "shifted", "grid", "one hot", "zeros", "zeros in part", "constant", "denormal",
    "tiny", "huge", "many scales",
)  # fmt: skip


@st.composite
def weights(draw: Any, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Tensor:
    """Finite weights, whatever else they may be."""
    dtype, kind, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(KINDS)), draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return fill(kind, shape, generator).clamp(-6e4, 6e4).to(dtype)

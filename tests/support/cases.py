"""The method cases of the law suite: each method in the shapes that could break differently."""

from itertools import product
from typing import Any

import pytest
import torch

from featherweight.methods import IA3, BitFit, Full, Head, LayerNorm, LoRA
from support.models import ARCHITECTURES

METHODS: dict[str, Any] = {
    "full": Full(),
    "head": Head(),
    "head-last1": Head(last=1),
    "bitfit": BitFit(),
    "bitfit-query-up": BitFit(targets=("query", "up")),
    "norm": LayerNorm(),
    "lora": LoRA(rank=4),
    "lora-linear-rs": LoRA(rank=2, alpha=3, targets="linear", rank_stabilized=True, init="gaussian"),
    "lora-embedding-attention": LoRA(rank=2, targets=("embedding", "attention"), rank_pattern={"0.*": 3}),
    "ia3": IA3(),
}
WITHOUT_BIAS = ("llama", "phi3", "t5")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def meaningless(method: str, arch: str) -> bool:
    """Combinations that are refused with an error (`test_refused` shows the error)."""
    return method.startswith("bitfit") and arch in WITHOUT_BIAS


def cases(dtypes: bool = True) -> list[Any]:
    """Every method on every architecture, the dtype alternating; the other half carries the `sweep` mark."""
    out = []
    grid = [(m, a) for m, a in product(METHODS, ARCHITECTURES) if not meaningless(m, a)]
    for i, (method, arch) in enumerate(grid):
        for j, dtype in enumerate(DTYPES if dtypes else ["fp32"]):
            marks = [pytest.mark.sweep] if dtypes and (i + j) % 2 else []
            out.append(pytest.param(METHODS[method], arch, DTYPES[dtype], id=f"{method}-{arch}-{dtype}", marks=marks))
    return out

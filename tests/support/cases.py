"""The method cases of the law suite: each method in the shapes that could break differently."""

from typing import Any

from featherweight.methods import IA3, BitFit, Full, Head, LayerNorm, LoRA
from support.applies import refusal

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


def meaningless(method: str, arch: str) -> bool:
    """Combinations that are refused with an error (docs/methods/applies.md has the reasons, a law checks them)."""
    return refusal(method, METHODS[method], arch) is not None

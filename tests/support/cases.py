"""The method cases of the law suite: each method in the shapes that could break differently."""

from typing import Any

import featherweight as fw
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
    "lora-pissa": LoRA(rank=3, targets="linear", init="pissa"),
    "lora-fa": LoRA(rank=4, freeze_A=True, init="orthogonal", lr_ratio=16),
    "dora": fw.DoRA(rank=4),
    "dora-linear-rs": fw.DoRA(rank=2, alpha=3, targets=("embedding", "linear"), rank_stabilized=True),
    "dora-olora": fw.DoRA(rank=2, targets="attention", init="olora"),
    "ia3": IA3(),
    "fishmask": fw.FishMask(density=0.02),
    "shira": fw.SHiRA(rank=2),
    "shira-fisher": fw.SHiRA(rank=3, targets=("query", "value", "up"), mask="fisher"),
    "intrinsic": fw.Intrinsic(dimension=200, seed=3),
    "intrinsic-did": fw.Intrinsic(dimension=40, structure=False),
    "houlsby": fw.Houlsby(bottleneck=4),
    "houlsby-skip": fw.Houlsby(bottleneck=4, skip=1, norms=False, cross=True, activation="gelu"),
    "pfeiffer": fw.Pfeiffer(bottleneck=4),
    "lin": fw.Lin(bottleneck=4),
    "parallel": fw.Parallel(bottleneck=4, scale="learned"),
    "compacter": fw.Compacter(bottleneck=4),
    "compacter-plus": fw.Compacter(bottleneck=8, plus=True, shared_rule=False, rank=2),
    "adalora": fw.AdaLoRA(rank=4, target_rank=2),
    "adalora-attention": fw.AdaLoRA(rank=3, target_rank=2, targets="attention"),
    "vera": fw.VeRA(rank=8),
    "vera-linear": fw.VeRA(rank=5, targets="linear", save_projection=False, seed=3),
    "scaling": fw.Scaling(),
    "scaling-rank3": fw.Scaling(rank=3, targets="linear", sides="both"),
    "scaling-input": fw.Scaling(targets=("down",), sides="input"),
    "tokens": fw.Tokens(tokens=(5, 40, 7)),
    "experts": fw.ExpertLoRA(rank=2),
    "experts-attention": fw.ExpertLoRA(rank=2, targets="attention"),
    "qat": fw.QAT(),
    "qat-lsq": fw.QAT(scheme=fw.Absmax(bits=3, per=16), learned_scale=True, targets="attention"),
    "qat-nf4": fw.QAT(scheme=fw.NF4(), targets=("embedding", "linear")),
    "qat-activations": fw.QAT(activations=8, learned_scale=True),
    "prefix": fw.Prefix(tokens=3, hidden=6),
    "prefix-plain-top": fw.Prefix(tokens=4, hidden=0, layers=1),
    "deep-prompt": fw.DeepPrompt(tokens=2),
    "llama-adapter": fw.LlamaAdapter(tokens=3),
    "prompt": fw.Prompt(tokens=4),
    "ptuning": fw.PTuning(template=(3,)),
    "ptuning-template": fw.PTuning(template=(2, 1, 2), encoder="mlp", hidden=8),
}


def meaningless(method: str, arch: str) -> bool:
    """Combinations that are refused with an error (docs/methods/applies.md has the reasons, a law checks them)."""
    return refusal(method, METHODS[method], arch) is not None

"""Tiny random-weight mixtures of experts, in the layouts that transformers has."""

from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import nn

from support.models import SIZE

GROUPED = {"num_key_value_heads": 2, "num_experts_per_tok": 2}
MODELS = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2-moe": ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}),
    "olmoe": ("Olmoe", {"num_experts": 4}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "head_dim": 8}),
}
made: dict[str, nn.Module] = {}


def mixture(kind: str, eager: bool = False) -> Any:
    """A tiny mixture of experts; `eager` runs them one by one, in fp64 too."""
    if kind not in made:
        name, fields = MODELS[kind]
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZE, **GROUPED, **fields, pad_token_id=0)
        made[kind] = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for p in made[kind].parameters():
            if p.dim() == 3 or not p.any():
                nn.init.normal_(p, std=0.1)  # some experts start at what memory held
    model = deepcopy(made[kind])
    if eager:
        model.config._experts_implementation = "eager"
    return model

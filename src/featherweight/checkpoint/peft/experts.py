"""LORA on `target_parameters`: the 3-d weights of experts, `lora_A.weight (E r, in)`, `lora_B.weight (out, r E)`.

PEFT wraps a module once for each adapted tensor, in the module's order, so the last one is the outermost: its keys are
`<module>.lora_A.weight`, those of the one before it `<module>.base_layer.lora_A.weight`, and so on inwards.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft import lora
from featherweight.checkpoint.peft.codec import Adapters, Codec, refused, typed
from featherweight.checkpoint.peft.lora import FOREIGN, TYPES, UNTOUCHED, whole
from featherweight.checkpoint.peft.names import PREFIX
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.methods.experts import ExpertLoRA, Experts, stacked

TARGETS = "target_parameters"


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    method = cast(ExpertLoRA, method)
    scale = next(cast(Experts, a).scale for a in adapters.values())
    rank = method.rank
    return {
        "r": rank,
        "lora_alpha": whole(scale * (rank**0.5 if method.rank_stabilized else rank)),
        "lora_dropout": 0.0,
        "target_modules": [],
        TARGETS: names(model, adapters),
        "use_rslora": method.rank_stabilized,
        "init_lora_weights": True,
        "bias": "none",
    }


def names(model: nn.Module, adapters: Adapters) -> list[str]:
    """The adapted tensors: by the ends of their paths where these mean no other one, else by whole paths."""
    mine = [f"{path}.{name}" for path, a in adapters.items() for name in cast(Experts, a).of]
    there = [f"{path}.{name}" for path, m in base_modules(model) for name in stacked(m)]
    tails = sorted({".".join(p.split(".")[-2:]) for p in mine})
    return tails if [p for p in there if p.endswith(tuple(f".{t}" for t in tails))] == mine else sorted(mine)


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    found = []
    for path, adapter in adapters.items():
        inward = list(reversed(list(cast(Experts, adapter).of)))
        for depth, name in enumerate(inward):
            for m in ("lora_A", "lora_B"):
                own = f"{path}.of.{name}.{m}.weight"
                key = f"{PREFIX}{path}.{'base_layer.' * depth}{m}.weight"
                found.append(same(key, own, tuple(state[own].shape)))
    return found


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """What a foreign LORA config means: on experts where it has `target_parameters`, else on layers."""
    if not config.get(TARGETS):
        return lora.method(model, config, where)
    typed(config, TYPES | {TARGETS: (list,)}, where)
    refused(config, [f for f in FOREIGN if f != TARGETS], where)
    refused(config, ("rank_pattern", "alpha_pattern"), where)
    if config.get("target_modules"):
        raise InputError(
            Problem("LoRA on experts and on other layers in one file", f"{where}:target_modules", "one of the two",
                    repr(config["target_modules"]), "save them from peft as two adapters, and load both (stack=True)")
        )  # fmt: skip
    if config.get("init_lora_weights", True) not in UNTOUCHED:
        raise InputError(Problem("its initialization changed the base's weights, which are not in the file",
                                 f"{where}:init_lora_weights", got=repr(config["init_lora_weights"])))  # fmt: skip
    return ExpertLoRA(
        rank=config.get("r", 8),
        alpha=config.get("lora_alpha", 8),
        targets=tuple(t.replace(".", r"\.") for t in config[TARGETS]),
        rank_stabilized=bool(config.get("use_rslora")),
    )


CODEC = Codec("LORA", lora.CODEC.fields, config, entries, method)

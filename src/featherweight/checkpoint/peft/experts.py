"""LORA with `target_parameters`: the 3-d weights of experts, `lora_A.weight (E r, in)`, `lora_B.weight (out, r E)`.

PEFT wraps a module once for each adapted tensor, in the module's order, so the last one is the outermost: its keys are
`<module>.lora_A.weight`, those of the one before it `<module>.base_layer.lora_A.weight`, and so on inwards.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft import lora
from featherweight.checkpoint.peft.codec import Adapters, Codec, refused, typed
from featherweight.checkpoint.peft.lora import FOREIGN, TYPES, whole
from featherweight.checkpoint.peft.names import PREFIX, named
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import transposed
from featherweight.core.site import kind_of
from featherweight.core.stack import stacked
from featherweight.methods.experts import ExpertLoRA, Experts
from featherweight.methods.lora import LoRA

TARGETS = "target_parameters"


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    """As LoRA's, over the other layers' paths and the experts' tensors together."""
    method, layers = cast(ExpertLoRA, method), others(adapters)
    ranks = {path: sum(part.rank for part in lora.parts(a)) for path, a in layers.items()}
    scales = {path: lora.scale(lora.parts(a)[0]) for path, a in layers.items()}
    for path, adapter in experts(adapters).items():
        ranks |= {f"{path}.{n}": r for n, r in adapter.ranks.items()}
        scales |= {f"{path}.{n}": s for n, s in adapter.scales.items()}
    alphas = {p: whole(s * ranks[p] ** (0.5 if method.rank_stabilized else 1)) for p, s in scales.items()}
    usual_rank, usual_alpha = lora.usual(ranks.values()), lora.usual(alphas.values())
    modules = dict(base_modules(model))
    return {
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "rank_pattern": lora.pattern(ranks, usual_rank),
        "alpha_pattern": lora.pattern(alphas, usual_alpha),
        "lora_dropout": 0.0,
        "target_modules": named(list(layers), list(modules)) if layers else [],
        TARGETS: names(model, adapters),
        "fan_in_fan_out": any(transposed(modules[path]) for path in layers),
        "use_rslora": method.rank_stabilized,
        "init_lora_weights": "gaussian" if method.init == "gaussian" else True,
        "bias": "none",
    }


def experts(adapters: Adapters) -> dict[str, Experts]:
    return {path: a for path, a in adapters.items() if isinstance(a, Experts)}


def others(adapters: Adapters) -> Adapters:
    return {path: a for path, a in adapters.items() if not isinstance(a, Experts)}


def names(model: nn.Module, adapters: Adapters) -> list[str]:
    """The adapted tensors: by the ends of their paths where these mean no other one, else by whole paths."""
    mine = [f"{path}.{name}" for path, a in experts(adapters).items() for name in a.ranks]
    there = [f"{path}.{name}" for path, m in base_modules(model) for name in stacked(m)]
    tails = sorted({".".join(p.split(".")[-2:]) for p in mine})
    return tails if [p for p in there if p.endswith(tuple(f".{t}" for t in tails))] == mine else sorted(mine)


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    found = lora.entries(model, others(adapters), state)
    for path, adapter in experts(adapters).items():
        inward = list(reversed(list(adapter.ranks)))
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
    refused(config, ["use_dora", *(f for f in FOREIGN if f != TARGETS)], where)
    plain = {key: value for key, value in config.items() if key != TARGETS}
    if not config.get("target_modules"):  # any that is there: what it targets is left out below
        plain["target_modules"] = next(p for p, m in base_modules(model) if kind_of(m) == "linear")
    layers = cast(LoRA, lora.method(model, plain, where))
    return ExpertLoRA(
        rank=layers.rank,
        alpha=layers.alpha,
        dropout=layers.dropout,
        targets=layers.targets if config.get("target_modules") else (),
        rank_pattern=layers.rank_pattern,
        alpha_pattern=layers.alpha_pattern,
        init=layers.init,
        rank_stabilized=layers.rank_stabilized,
        experts=tuple(t.replace(".", r"\.") for t in config[TARGETS]),
    )


CODEC = Codec("LORA", lora.CODEC.fields, config, entries, method)

"""LN_TUNING: `<norm>.ln_tuning_layers.weight (H,)`, with `.bias` for a LayerNorm: replacements, not deltas."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX, named, regex, targeted
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.methods.norm import LayerNorm

FIELDS = ("target_modules", "exclude_modules", "modules_to_save")
TYPES = {"target_modules": (list, str), "exclude_modules": (list, str), "modules_to_save": (list,)}


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    return {"target_modules": named(list(adapters), [path for path, _ in base_modules(model)])}


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    return [
        same(f"{PREFIX}{path}.ln_tuning_layers.{n}", f"{path}.{n}", tuple(state[f"{path}.{n}"].shape))
        for path, adapter in adapters.items()
        for n, _ in adapter.named_parameters()
    ]


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The norm tuning that a foreign config means."""
    typed(config, TYPES, where)
    modules = [path for path, _ in base_modules(model)]
    return LayerNorm(targets=regex(targeted(config, modules, where), modules))


CODEC = Codec("LN_TUNING", FIELDS, config, entries, method)

"""IA3: `ia3_l (out, 1)` scales an output, `ia3_l (1, in)` of a feed-forward module its input.

A slice of a fused projection is exact as the whole vector with ones at the other rows.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX, matched, named, regex, targeted, width
from featherweight.checkpoint.peft.slices import spread
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import Parts, transposed
from featherweight.methods.ia3 import IA3, RescaleInput

FIELDS = (
    "target_modules",
    "feedforward_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "modules_to_save",
    "init_ia3_weights",
)
TYPES = dict.fromkeys(FIELDS[:3], (list, str)) | {"modules_to_save": (list,)}


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    modules = dict(base_modules(model))
    inputs = [path for path, a in adapters.items() if scales_input(a)]
    return {
        "target_modules": named(list(adapters), list(modules)),
        "feedforward_modules": named(inputs, list(modules)),
        "fan_in_fan_out": any(transposed(modules[path]) for path in adapters),
        "init_ia3_weights": True,
    }


def scales_input(adapter: nn.Module) -> bool:
    made = list(adapter.of.values()) if isinstance(adapter, Parts) else [adapter]
    return isinstance(made[0], RescaleInput)


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    modules = dict(base_modules(model))
    found = []
    for path, adapter in adapters.items():
        key = f"{PREFIX}{path}.ia3_l"
        roles = list(adapter.rows) if isinstance(adapter, Parts) else []
        rows = [r for r in adapter.rows.values() if r is not None] if isinstance(adapter, Parts) else []
        if rows and not scales_input(adapter):
            found.append(spread(key, [f"{path}.{role}.ia3_l" for role in roles], rows, width(modules[path])))
        else:
            own = f"{path}.{roles[0]}.ia3_l" if roles else f"{path}.ia3_l"
            found.append(same(key, own, tuple(state[own].shape)))
    return found


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The (IA)³ that a foreign config means; a fused projection it targets is scaled whole."""
    typed(config, TYPES, where)
    modules = [path for path, _ in base_modules(model)]
    hit = targeted(config, modules, where)
    feedforward = config.get("feedforward_modules") or []
    inputs = [p for p in hit if matched(p, {"target_modules": feedforward})]
    outputs = [p for p in hit if p not in inputs]
    return IA3(targets=regex(outputs, modules) if outputs else (), feedforward=regex(inputs, modules) if inputs else ())


CODEC = Codec("IA3", FIELDS, config, entries, method)

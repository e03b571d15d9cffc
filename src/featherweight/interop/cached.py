"""Attention modules that compute attention themselves, entered through the cache that they are handed.

    key, value = layer_past.update(key, value, …)        BLOOM, Falcon, GPT-J, GPT-Neo

A module whose forward holds this line gets a cache whose answer has virtual keys and values in front; the real cache
keeps the real ones. The mask that the module is handed grows along, and so do BLOOM's linear biases, which count the
prefix as the places before the first token. GPT-Neo's local layers see it as far as their window reaches, as under
PEFT. MPT is left out: its biases are one line for all rows, in which a prefix would lie behind a row's padding.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.attending import Front, Masks, lay, widened
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import frozen_class
from featherweight.core.rows import Group

NAMES = ("layer_past", "past_key_values")


class Handed:
    """The door to attention modules that put their keys into a cache they are handed."""

    def fits(self, module: nn.Module, law: str) -> bool:
        code = getattr(inspect.unwrap(frozen_class(module).forward), "__code__", None)
        if law != "past" or code is None or {"get_interface", "position_bias"} & {*code.co_names, *code.co_varnames}:
            return False
        return "update" in code.co_names and any(name in code.co_varnames for name in NAMES)

    def opened(self, host: Any, groups: Sequence[Group]) -> Any:
        return Behind(host, groups)


class Behind:
    """A host whose cache answers with virtual keys and values in front."""

    def __init__(self, host: Any, groups: Sequence[Group]):
        self.host, self.groups, self.frozen_class = host, groups, Behind

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        host = self.host
        names = tuple(inspect.signature(host.frozen_class.forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given["hidden_states"]
        front = lay(self.groups, x.device)
        if front is None:
            return host.frozen_class.forward(host, **given)
        name = next(n for n in NAMES if n in names)
        cache, masks = given.get(name), speaks(host, given)
        keys = x.shape[1] + (0 if cache is None else int(cache.get_seq_length(index(host))))
        given["attention_mask"] = widened(given.get("attention_mask"), front, masks, x, x.shape[1], keys)
        if given.get("alibi") is not None:
            given["alibi"] = farther(host, given["alibi"], front)
        given[name] = Fronted(cache, front)
        out = host.frozen_class.forward(host, **given)
        return (out[0], *(cut(w, front.on.shape[1], given[name].keys) for w in out[1:]))


class Fronted:
    """A cache with something in front of what it answers; `keys` is how many that made."""

    def __init__(self, real: Any, front: Front):
        self.real, self.front, self.keys = real, front, 0

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.real is not None:
            key, value = self.real.update(key, value, *args, **kwargs)
        key, value = self.front.before(key, value)
        self.keys = key.shape[2]
        return key, value

    def get_seq_length(self, *args: Any) -> int:
        return 0 if self.real is None else int(self.real.get_seq_length(*args))


def index(host: Any) -> int:
    """The module's layer."""
    return int(getattr(host, "layer_idx", getattr(host, "layer_id", 0)))


def speaks(host: Any, given: dict[str, Any]) -> Masks:
    """How the module reads masks. Raises InputError for what cannot be widened exactly."""
    named = str(getattr(getattr(host, "config", None), "_attn_implementation", None) or "eager")
    fix = 'model.set_attn_implementation("eager")'
    if "flash" in named or "flex" in named:
        raise InputError(Problem("virtual keys in a module that calls this kernel itself", named, fix=fix))
    if named == "sdpa" and given.get("alibi") is not None:
        raise InputError(Problem("the mask holds linear biases, which virtual keys would not get", named, fix=fix))
    return Masks(named == "sdpa", "added" if named == "eager" else "seen")


def farther(host: Any, alibi: Tensor, front: Front) -> Tensor:
    """The linear biases (batch · heads, 1, keys) with those of the places before the first token in front."""
    n, heads = front.on.shape[1], int(host.num_heads)
    build = sys.modules[host.frozen_class.__module__].build_alibi_tensor
    line = build(torch.ones(1, n + 1, dtype=torch.long, device=alibi.device), heads, alibi.dtype)  # (heads, 1, n + 1)
    more = (line[..., :n] - line[..., n:]).repeat(len(alibi) // heads, 1, 1)
    return torch.cat([more, alibi], -1)


def cut(weights: Any, n: int, keys: int) -> Any:
    """Attention weights without the virtual keys."""
    is_weights = isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[-1] == keys
    return weights[..., n:] if is_weights else weights

"""transformers' attention modules, entered through its registry of attention functions.

    attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_…)

A module whose forward holds this line runs over a view of itself whose config names "featherweight": one more entry of
the registry, which calls what the model's own config names, with more keys. The config itself is not touched.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from featherweight.core.attending import Function, Masks, attended
from featherweight.core.base import view
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import frozen_class
from featherweight.core.rows import Group

NAME = "featherweight"


class Renamed:
    """A config whose attention function is ours; all else is read from the model's own."""

    _attn_implementation = NAME

    def __init__(self, config: Any):
        self.__dict__["own"] = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["own"], name)


class Registry:
    """The door to attention modules that ask the registry for their function."""

    def fits(self, module: nn.Module, law: str) -> bool:
        return asks(module)

    def opened(self, host: Any, groups: Sequence[Group]) -> nn.Module:
        if NAME not in registry():
            registry().register(NAME, around)
        seen = view(host, {})
        seen.__dict__.update(config=Renamed(host.config), attending=(host, groups), frozen_class=host.frozen_class)
        return seen


def asks(module: nn.Module) -> bool:
    """Whether a module's forward asks the registry for its attention function."""
    code = getattr(inspect.unwrap(frozen_class(module).forward), "__code__", None)
    asked = code is not None and {"get_interface", "_attn_implementation"} <= set(code.co_names)
    return asked and hasattr(module, "config")


def registry() -> Any:
    return sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS


def around(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """The attention function of a view: the model's own, inside what the adapters declare."""
    host, groups = module.attending
    named = host.config._attn_implementation
    run = registry().get_interface(named, eager(host))
    refuse(host, groups, named, kwargs)
    kind = "added" if named == "eager" else "padding" if "flash" in named else "seen"
    causal = kwargs.get("is_causal")
    causal = getattr(host, "is_causal", True) if causal is None else causal
    masks = Masks(causal and named != "eager", kind)  # eager functions see everything without a mask
    return attended(Function(host, run), masks, groups, query, key, value, attention_mask, **kwargs)


def eager(host: Any) -> Any:
    """The eager function that the module's own forward names."""
    forward = inspect.unwrap(frozen_class(host).forward)
    name = next((n for n in forward.__code__.co_names if n.endswith("eager_attention_forward")), "")
    return forward.__globals__.get(name)


def refuse(host: Any, groups: Sequence[Group], named: str, kwargs: dict[str, Any]) -> None:
    """Raise InputError for what cannot be widened exactly."""
    fix = 'model.set_attn_implementation("sdpa")'
    cut = "flash" in named and (kwargs.get("sliding_window") or kwargs.get("cu_seq_lens_q") is not None)
    if cut and any(getattr(a, "past", None) for _, stack in groups for a in stack):
        raise InputError(Problem("virtual keys with a sliding window or packed rows in one flash call", named, fix=fix))
    if "flex" in named:
        raise InputError(Problem("flex attention needs a block mask of its own for virtual keys", named, fix=fix))
    if named == "eager" and eager(host) is None:
        raise InputError(Problem("no eager attention function in its file", type(host).__name__, fix=fix))
    if named == "eager" and getattr(host, "reorder_and_upcast_attn", False):
        raise InputError(Problem("reorder_and_upcast_attn computes attention in the module itself", named, fix=fix))

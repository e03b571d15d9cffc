"""Other tensors for an adapter that is attached, in place: graphs, optimizers and rows that hold it stay valid.

The file's adapter must be built as the live one is: on the same hosts, of the same shapes, with the same constants
(a scale is no tensor). What the methods say only for training (dropout, init) may differ.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from featherweight.checkpoint.peft.common import head_paths
from featherweight.checkpoint.save import trunk
from featherweight.core.adapter import Adapter
from featherweight.core.attach import build
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.core.method import Method
from featherweight.core.state import adapters
from featherweight.core.switch import switch_of

PLAIN = (bool, int, float, str, tuple, type(None))
OUT = "detach it first, then load"


def exchangeable(model: nn.Module, name: str, method: Method, head: bool) -> None:
    """Raise InputError where the tensors of `method` cannot take the place of those of the adapter `name`."""
    attached = switch_of(model).attached
    if name not in attached:
        near = did_you_mean(name, attached) if attached else "nothing is attached"
        raise InputError(Problem("nothing to replace: no adapter of this name", got=repr(name), fix=near))
    live = attached[name]
    if head != live.head:
        what = ("with a head", "without one")
        raise InputError(
            Problem("a head goes with one of the two only", name, what[not live.head], what[not head], OUT)
        )
    if type(method) is not type(live.method):
        raise InputError(Problem("another method", name, repr(live.method), repr(method), OUT))
    if method != live.method:
        made = adapters(model, name)
        raise_all(unlike(name, trunk(made, head_paths(model, made), live), built(model, method)))


def built(model: nn.Module, method: Method) -> dict[str, Adapter]:
    """The adapters of a method by path, made beside the model."""
    return {path: adapter for path, (_, adapter) in build(model, method, list(method.hosts(model))).items()}


def unlike(name: str, live: Mapping[str, Adapter], new: Mapping[str, Adapter]) -> Iterator[Problem]:
    """Every way in which two sets of adapters are built differently."""
    for path in new:
        if path not in live:
            yield Problem("the file adapts a module that the adapter does not", f"{name}: {path}", fix=OUT)
    for path, adapter in live.items():
        if path in new:
            yield from differing(f"{name}: {path}", constants(adapter), constants(new[path]))
        else:
            yield Problem("the adapter is on a module that the file does not adapt", f"{name}: {path}", fix=OUT)


def differing(where: str, live: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Problem]:
    for key in dict.fromkeys([*live, *new]):
        one, other = live.get(key), new.get(key)
        if type(one) is not type(other) or not same(one, other):
            yield Problem(f"{key} differs", where, str(one), str(other), OUT)


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def constants(adapter: Adapter) -> dict[str, Any]:
    """What an adapter computes with beside the tensors of its file: types, constants, shapes, unsaved buffers."""
    found: dict[str, Any] = {}
    for prefix, module in adapter.named_modules():
        stem = f"{prefix}." if prefix else ""
        found[f"{stem}type"] = type(module).__name__
        if isinstance(module, Adapter):
            found |= {f"{stem}{k}": v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, PLAIN)}
        found |= {f"{stem}{k}": v for k, v in module._buffers.items() if k in module._non_persistent_buffers_set}
        found |= {f"{stem}{k}": tuple(p.shape) for k, p in module._parameters.items() if p is not None}
    return {k: v for k, v in found.items() if k.rpartition(".")[2] != "training"}

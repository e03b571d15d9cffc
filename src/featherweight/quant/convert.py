"""`convert`: the end of quantization-aware training. Every host keeps exactly the codes that it trained with.

Q(W), W in floating point   ->   codes, scales: decode(codes, scales) = Q(W), bit for bit
"""

from typing import Any, NamedTuple

from torch import nn

from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import frozen_class, hosts, stack_of
from featherweight.core.merge import merge
from featherweight.core.part import Part, PartBase, Parts
from featherweight.core.switch import switch_of
from featherweight.quant.classes import quantized_class
from featherweight.quant.qat import FakeQuantized
from featherweight.quant.quantized import Quantized, become_quantized
from featherweight.quant.scheme import Packed, Scheme


class Found(NamedTuple):
    """One host whose weight is about to be codes."""

    path: str
    host: Any
    scheme: Scheme
    packed: Packed


def convert(model: nn.Module) -> nn.Module:
    """Fold the active adapters and put codes in the place of every weight that QAT is on, in place; no adapter stays.

    The outputs are those of the model in training: without a learned scale also those of `fw.merge` followed by
    `fw.quantize`. Raises InputError, before anything is touched, where QAT is not on, not on top, or on a module that
    cannot keep codes; NotMergeable for adapters that cannot be folded.
    """
    found = trained(model)
    merge(model)
    for one in found:
        become_quantized(one.host, one.scheme, one.packed)
    return model


def trained(model: nn.Module) -> list[Found]:
    """The hosts with QAT on top, and their codes. Nothing is touched."""
    found, problems = [], []
    for path, host in hosts(model):
        stack = stack_of(host, switch_of(model).active)
        if not any(isinstance(mine(a), FakeQuantized) for a in stack):
            continue
        top = mine(stack[-1])
        if not isinstance(top, FakeQuantized):
            problems.append(Problem("an adapter above it changes the rounded weight", path, fix="attach QAT last"))
        elif quantized_class(plain_class(host)) is None:
            fix = "fw.merge(model) leaves the rounded weights in floating point"
            problems.append(Problem(f"no quantized form of {plain_class(host).__name__}", path, fix=fix))
        else:
            base: Any = Base(host, stack[:-1])
            base = PartBase(base, Part(host)) if isinstance(stack[-1], Parts) else base
            found.append(Found(path, host, top.scheme, top.packed(top.source(base).detach())))
    raise_all(problems)
    if not found:
        raise InputError(Problem("QAT is not on", "convert", fix="attach fw.QAT(...), or fw.quantize(model, scheme)"))
    return found


def mine(adapter: Any) -> Any:
    """An adapter of its own, also where it sits on the whole of a module that keeps its weight turned."""
    if isinstance(adapter, Parts):
        return adapter.of["whole"] if "whole" in adapter.of else next(iter(adapter.of.values()))
    return adapter


def plain_class(host: Any) -> Any:
    cls = frozen_class(host)
    return cls.plain if issubclass(cls, Quantized) else cls

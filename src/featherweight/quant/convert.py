"""`convert`: the end of quantization-aware training. Every host keeps exactly the codes that it trained with.

Q(W), W in floating point   ->   codes, scales: decode(codes, scales) = Q(W), bit for bit
x̂ of 8 bits, W of 8 bits    ->   the scheme's int8 activations: dynamic, or static with the step that was learned
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import anatomy
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import frozen_class, hosts, stack_of
from featherweight.core.merge import merge
from featherweight.core.part import Part, PartBase, Parts
from featherweight.core.switch import switch_of
from featherweight.quant.absmax import Absmax
from featherweight.quant.classes import quantized_class
from featherweight.quant.place import Place
from featherweight.quant.qat import QAT, FakeQuantized
from featherweight.quant.quantize import rest, settled
from featherweight.quant.quantized import Quantized, become_quantized
from featherweight.quant.report import Report, measured
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.skip import roles_of


class Found(NamedTuple):
    """One host whose weight is about to be codes."""

    place: Place
    W: Tensor  # (out, in), before rounding
    scheme: Scheme
    packed: Packed


def convert(model: nn.Module) -> nn.Module:
    """Fold the active adapters and put codes in the place of every weight that QAT is on, in place; no adapter stays.

    The model computes what it did in training; without a learned scale that is what `fw.merge` and then `fw.quantize`
    come to. `model.quantization_report` is as after `fw.quantize`, errors against the weights before rounding.
    Raises InputError, before anything is touched, where QAT is not on, not on top, or on what cannot keep codes;
    NotMergeable for adapters that cannot be folded.
    """
    found = trained(model)
    with weights_alone(model):
        merge(model)
    layers = tuple(measured(f.place, f.W, f.scheme, f.packed, f.W.numel() * f.W.element_size()) for f in found)
    for one in found:
        become_quantized(one.place.module, one.scheme, one.packed)
    settled(model, Report(found[0].scheme, layers, rest=rest(model)))
    return model


def trained(model: nn.Module) -> list[Found]:
    """The hosts with QAT on top, and their codes. Nothing is touched."""
    found, problems, there = [], [], anatomy(model)
    roles, blocks = roles_of(there), [(f"{path}.", i) for i, (path, _) in enumerate(there.blocks)]
    for path, host in hosts(model):
        stack = stack_of(host, switch_of(model).active)
        if not any(isinstance(mine(a), FakeQuantized) for a in stack):
            continue
        wrong = misplaced(path, host, stack)
        if wrong is not None:
            problems.append(wrong)
            continue
        block = next((i for prefix, i in blocks if path.startswith(prefix)), None)
        place = Place(path, host, roles.get(path, "") or path.rsplit(".", 1)[-1], block)
        found.append(coded(place, mine(stack[-1]), base_of(host, stack)))
    raise_all(problems)
    if not found:
        raise InputError(Problem("QAT is not on", "convert", fix="attach fw.QAT(...), or fw.quantize(model, scheme)"))
    return found


def misplaced(path: str, host: Any, stack: tuple[Any, ...]) -> Problem | None:
    """What stands against codes in the place of a host's weight."""
    top, cls = mine(stack[-1]), frozen_class(host)
    plain = cls.plain if issubclass(cls, Quantized) else cls
    floats = "fw.merge(model) leaves the rounded weights in floating point"
    if not isinstance(top, FakeQuantized):
        return Problem("an adapter above it changes the rounded weight", path, fix="attach QAT last")
    if isinstance(stack[-1], Parts) and "whole" not in stack[-1].of:
        return Problem("only some rows of a fused projection are rounded", path, fix=f"name it whole, or {floats}")
    if quantized_class(plain) is None:
        return Problem(f"no quantized form of {plain.__name__}", path, fix=floats)
    scheme = top.scheme
    integers = isinstance(scheme, Absmax) and scheme.bits == 8 and scheme.per in ("row", "tensor")
    if top.bits and not (top.bits == 8 and integers):
        needs = 'activations=8 and scheme=Absmax(bits=8), per="row" or "tensor"'
        return Problem("its rounded inputs have no integer product", path, needs, f"{top.bits} bits, {scheme!r}")
    return None


def coded(place: Place, top: FakeQuantized, base: Any) -> Found:
    """The codes of a host's weight, and its scheme, which says how inputs are rounded where they are."""
    W, scheme = top.source(base).detach(), top.scheme
    packed = top.packed(W)
    if isinstance(scheme, Absmax) and top.bits:
        scheme = replace(scheme, activations="dynamic" if top.input_step is None else "static")
        if top.input_step is not None:
            step = top.input_step.detach().abs().float().view(1)
            kept = {"x_zero": torch.zeros_like(step, dtype=torch.int8), "x_tokens": torch.zeros_like(step).long()}
            packed |= {"x_scale": step} | kept  # no calibration tokens: the step was learned
    return Found(place, W, scheme, packed)


def base_of(host: Any, stack: tuple[Any, ...]) -> Any:
    """What the uppermost adapter sees below itself."""
    base: Any = Base(host, stack[:-1])
    return PartBase(base, Part(host)) if isinstance(stack[-1], Parts) else base


def mine(adapter: Any) -> Any:
    """An adapter of its own, also where it sits on the whole of a module that keeps its weight turned."""
    if isinstance(adapter, Parts):
        return adapter.of["whole"] if "whole" in adapter.of else next(iter(adapter.of.values()))
    return adapter


@contextmanager
def weights_alone(model: nn.Module) -> Iterator[None]:
    """QAT without its rounded inputs, so that it folds; as it was after an error."""
    state = switch_of(model)
    before = dict(state.attached)
    adapters = [m for m in model.modules() if isinstance(m, FakeQuantized)]
    bits = [a.bits for a in adapters]
    for name, one in before.items():
        if isinstance(one.method, QAT):
            state.attached[name] = replace(one, method=replace(one.method, activations=0))
    for adapter in adapters:
        adapter.bits = 0
    try:
        yield
    except BaseException:
        state.attached.update(before)
        for adapter, number in zip(adapters, bits, strict=True):
            adapter.bits = number
        raise

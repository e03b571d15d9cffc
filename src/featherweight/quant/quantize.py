"""`quantize`: the weights of a model's linear layers become codes, in place, with a report of what that did.

W -> encode -> codes, scales          y = x decode(codes, scales)ᵀ + b
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.host import base_parameters, refuse_sharded
from featherweight.core.switch import switch_of
from featherweight.core.targets import Targets
from featherweight.quant.outputs import output_errors
from featherweight.quant.place import Place
from featherweight.quant.quantized import agreed
from featherweight.quant.report import Layer, Report, measured, with_outputs
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.skip import Choice, choose

# called with the model when some of it has become codes: interop lets transformers know how it is saved
on_quantize: list[Callable[[nn.Module], None]] = []


def quantize(
    model: nn.Module,
    scheme: Scheme,
    *,
    targets: Targets = "linear",
    skip: Targets = (),
    batches: Iterable[Any] | None = None,
    dtype: torch.dtype | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Report:
    """Quantize the linear layers of the model's blocks in place; the report is also `model.quantization_report`.

    targets, skip: roles, names, regexes or a predicate, as for `attach`. Norms, embeddings and heads stay as they are
    unless they are targets; what cannot be encoded is in the report with its reason.
    batches: what the model is called with; layers' output errors are measured on them, and schemes that are calibrated
    need them. dtype: what weights decode to (default: what they were). told: called while a scheme is calibrated, with
    the layers that are done and the number of all.
    Raises one InputError over all that is wrong, before anything is changed: NaN and infinity, empty tensors, sharded
    models, tensors without memory, nothing left to quantize, a calibrated scheme without batches.
    """
    refuse_sharded(model, "quantize", "quantize first, then shard")
    choice = choose(model, targets, skip, scheme)
    raise_all(problems(choice, scheme, batches))
    held = None if batches is None else list(batches)
    packed = encoded(model, choice.places, scheme, held, told) if held is not None else None
    outputs = {} if packed is None else output_errors(model, choice.places, scheme, packed, held or ())
    switch_of(model).forget(p.own for p in choice.places)
    layers = with_outputs([replaced(p, scheme, packed, dtype) for p in choice.places], outputs)
    return settled(model, Report(scheme, layers, choice.skipped, rest(model)))


def settled(model: nn.Module, report: Report) -> Report:
    """Keep the report on the model and tell whoever has to know."""
    model.quantization_report = report  # type: ignore[assignment]
    for tell in on_quantize:
        tell(model)
    return report


def encoded(
    model: nn.Module, places: tuple[Place, ...], scheme: Scheme, batches: list[Any],
    told: Callable[[int, int], None] | None = None,
) -> dict[str, Packed]:  # fmt: skip
    """The codes of every place, before any module changes."""
    if scheme.calibrated:
        from featherweight.quant.calibrate import calibrated

        return calibrated(model, places, scheme, batches, told=told)
    return {p.path: p.codec(scheme).encode(matrix(p)) for p in places}


def replaced(place: Place, scheme: Scheme, packed: dict[str, Packed] | None, dtype: torch.dtype | None) -> Layer:
    """Make one module a quantized one. Its codes leave `packed`: no more than one layer is kept twice."""
    W = matrix(place)
    codes = place.codec(scheme).encode(W) if packed is None else packed.pop(place.path)
    codes = agreed(place.module, W, scheme, codes) if place.name is None else codes
    layer = measured(place, W, scheme, codes, W.numel() * W.element_size())
    place.put(scheme, codes, dtype)
    return layer


def matrix(place: Place) -> Tensor:
    """The weight as (out, in), or a stack of those, whatever way round the module keeps it."""
    W = place.weight.detach()
    return W if W.is_contiguous() or place.name is not None else W.contiguous()


def rest(model: nn.Module) -> int:
    """Bytes of a model's own parameters."""
    return sum(p.numel() * p.element_size() for _, p in base_parameters(model))


def problems(choice: Choice, scheme: Scheme, batches: Any = ()) -> Iterator[Problem]:
    """All that stands against quantizing these modules."""
    if not choice.places:
        reasons = list(dict.fromkeys(s.reason for s in choice.skipped))
        yield Problem("nothing is left to quantize", "targets", got=listed(reasons), fix="name other targets, or less to skip")  # fmt: skip  # noqa: E501
    if scheme.calibrated and batches is None:
        yield Problem("the scheme is calibrated on data", "batches", "a few batches of the model's inputs", fix="batches=[...], or --calibration FILE")  # fmt: skip  # noqa: E501
    for place in choice.places:
        found = unsound(place.key, place.own)
        yield from [found] if found else misfit(place, scheme)


def misfit(place: Place, scheme: Scheme) -> Iterator[Problem]:
    """What a scheme has against a shape."""
    try:
        place.codec(scheme).layout(tuple(place.weight.shape))
    except InputError as error:
        yield from (Problem(p.what, place.key, p.expected, p.got, p.fix) for p in error.problems)


def unsound(name: str, W: Tensor) -> Problem | None:
    """What makes a tensor impossible to encode: nothing in it, no memory, no floats, NaN and infinity."""
    if W.numel() == 0:
        return Problem("an empty tensor", name, got=f"shape {tuple(W.shape)}", fix="skip it")
    if W.is_meta:
        return Problem("a tensor without memory (meta device)", name, fix="load the model first, or load_base(path, quantize=scheme)")  # fmt: skip  # noqa: E501
    if not W.is_floating_point():
        return Problem("no floating-point weight", name, got=str(W.dtype).removeprefix("torch."), fix="skip it")
    if math.isfinite(float(W.detach().sum())):
        return None
    bad = W.numel() - int(torch.isfinite(W).sum())
    return Problem("values that are not finite", name, got=f"{bad:,} of {W.numel():,} NaN or inf", fix="mend the checkpoint, or skip the layer") if bad else None  # fmt: skip  # noqa: E501

"""How far the outputs of layers move when their weights become codes, on batches that run through the model as it is.

‖XWᵀ - XŴᵀ‖ / ‖XWᵀ‖     X: what the layer reads in the unquantized model; the bias is in neither
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.part import Part
from featherweight.quant.place import Place
from featherweight.quant.scheme import Packed, Scheme


def output_errors(
    model: nn.Module, places: Sequence[Place], scheme: Scheme, packed: Mapping[str, Packed], batches: Iterable[Any]
) -> dict[str, float]:
    """path -> relative error of the layer's output; what no batch reaches has none, and experts have none."""
    places = [place for place in places if place.name is None]
    sums = {place.path: torch.zeros(2, dtype=torch.float64) for place in places}

    def note(place: Place, x: Tensor) -> None:
        if not x.is_floating_point():
            return  # a table that is looked up
        W: Any = Part(place.module).weight.detach()
        y = F.linear(x, W.to(x.dtype))
        found = scheme.linear(x, packed[place.path], tuple(W.shape), None)
        sums[place.path] += torch.stack([square(y), square(found - y)]).cpu()

    run(model, places, note, batches)
    return {path: float((noise / signal).sqrt()) for path, (signal, noise) in sums.items() if signal > 0}


def square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def run(model: nn.Module, places: Sequence[Place], note: Any, batches: Iterable[Any]) -> None:
    """Call `note(place, input)` whenever a place's module is called, in eval mode and without gradients."""
    training = [m for m in model.modules() if m.training]
    hooks = [
        p.module.register_forward_pre_hook(
            lambda _, args, kwargs, p=p: note(p, (*args, *kwargs.values())[0].detach()), with_kwargs=True
        )
        for p in places
    ]
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
        for m in training:
            m.training = True

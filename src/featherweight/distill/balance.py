"""How much each term of a recipe pulls: the norm of its gradient before the first step.

    ‖∇_θ w_k L_k‖₂      over all that trains, on the first micro-batch

Values do not tell: a KL of 0.1 may pull harder than a cross-entropy of 2. A term whose norm is a thousandth of
another's might as well be left out. Each is computed from a forward of its own, and no chance is used up.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.train.seeds import own_generators


def gradient_norms(distilled: Any, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Term -> norm, divided by the units of the batch; nothing where there is one term alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found: dict[str, float] = {}
    device = next(model.parameters()).device
    with own_generators(device), torch.no_grad():
        names = list(distilled.terms(model, batch)[0])
    for name in names if len(names) > 1 and trained else ():
        with own_generators(device), torch.enable_grad():
            terms, _, units = distilled.terms(model, batch)
            pull = terms[name].weight * (terms[name].values * units).sum() / units.sum().clamp(min=1)
            grads = torch.autograd.grad(pull, trained, allow_unused=True) if pull.requires_grad else ()
        found[name] = float(sum((g.float().square().sum() for g in grads if g is not None), torch.zeros(()))) ** 0.5
    return found


def told(norms: Mapping[str, float]) -> str:
    """One line, the largest first."""
    shown = sorted(norms.items(), key=lambda item: -item[1])
    return "gradient norms of the terms at the start: " + ", ".join(f"{name} {norm:.3g}" for name, norm in shown)

"""Functions with a first derivative only say so, in place of leaving a term out in silence."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of an autograd function's backward: raise RuntimeError under `create_graph=True`.

    torch's `once_differentiable` raises only where the incoming gradient itself requires grad.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("a fused function has no second derivative: backward ran with create_graph=True")
        return backward(ctx, *grads)

    return checked

"""The bottleneck that Houlsby, Pfeiffer, Lin, parallel and Compacter adapters insert; it may rest (`adapter_drop.py`).

    g(x) = s · U act(D x + c) + e          D (b, d), U (d, b), b = ⌊d / reduction⌋ or given; 2 d b + b + d parameters

Nothing here folds into weights: act stands between D and U.
Source: the methods' own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.blank import blank
from featherweight.core.encoded import like, names
from featherweight.core.errors import Problem, did_you_mean, raise_all
from featherweight.core.host import base_modules
from featherweight.core.places import Place, Plan
from featherweight.core.replace import Copies, master
from featherweight.methods.adapter_drop import Drop

ACTIVATIONS: Mapping[str, Any] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": nn.GELU(approximate="tanh"),
    "swish": F.silu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leakyrelu": F.leaky_relu,
    "linear": nn.Identity(),
}


class Inserted(Adapter):
    """A module inserted by the law of a place; subclasses define `change`."""

    def __init__(self, place: Place, drop: Drop, first: bool = False):
        super().__init__()
        self.law, self.block, self.drop, self.first = place.law, place.block, drop, first

    def forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        if self.first and self.training:
            self.drop.draw()
        if self.drop.rests(self.block, self.training):
            return base(*args, **kwargs)
        return self.law(base, self.change, *args, **kwargs)

    def change(self, x: Tensor) -> Tensor:
        """What is added for hidden states x (..., d), of their shape; a tap's first layer adds nothing."""
        return torch.zeros_like(x)


class Bottleneck(Inserted):
    """g: down.weight (b, d), up.weight (d, b), their biases, and what a method adds to them."""

    def __init__(
        self, place: Place, method: Any, shared: "Shared", down: nn.Module, up: nn.Module, norm: nn.Module | None = None
    ):
        super().__init__(place, shared.drop, shared.first())
        self.width, self.activation = place.width, method.activation
        self.norm, self.down, self.up = norm, down, up
        self.dropout = nn.Dropout(method.dropout)
        self.scale: float | Tensor = 1.0

    def change(self, x: Tensor) -> Tensor:
        """g(x), (..., d) -> (..., d), without the residual."""
        dtype = next(self.up.parameters()).dtype
        inner = x.to(dtype).contiguous()  # else torch rounds otherwise while the weight trains
        inner = inner if self.norm is None else self.norm(inner)
        inner = self.up(ACTIVATIONS[self.activation](self.down(inner)))  # (..., b) -> (..., d)
        return self.dropout(self.scale * inner).to(x.dtype)


class Shared:
    """What the adapters of one attach have in common: AdapterDrop's state, copies of norms, a Compacter's rule."""

    def __init__(self, drop: int):
        self.drop, self.started = Drop(drop), False
        self.copies: Copies = {}
        self.rule: nn.Parameter | None = None

    def first(self) -> bool:
        """True for the adapter that asks first."""
        self.started, before = True, self.started
        return not before


@dataclass(frozen=True, repr=False)
class Inserting:
    """The fields that all methods of bottlenecks share; each is a `Method` with these in front."""

    reduction: float = 16
    bottleneck: int | None = None
    activation: str = "relu"
    dropout: float = 0.0
    skip: int = 0
    drop: int = 0

    mergeable: ClassVar[bool] = False

    def shared(self, model: nn.Module) -> Shared:
        check(self, len(Plan(model).blocks))
        return Shared(self.drop)


def size(method: Any, width: int) -> int:
    """b, at least 1."""
    return int(method.bottleneck if method.bottleneck is not None else max(1, width // method.reduction))


def resembling(place: Place) -> dict[str, Any]:
    """The device and trainable dtype of what is inserted at a place: those of the block's own tensors."""
    own = (like(m, n) for _, m in base_modules(place.module) for n in names(m))
    p = next(p for p in own if p.is_floating_point())
    return {"device": p.device, "dtype": master(p.dtype)}


def linears(place: Place, method: Any) -> tuple[nn.Linear, nn.Linear]:
    """D and U without values."""
    b, like = size(method, place.width), resembling(place)
    down, up = ((place.width, b), (b, place.width))
    return blank(nn.Linear, *down, **like), blank(nn.Linear, *up, **like)


def gaussian(std: float, *layers: nn.Linear, cut: float | None = None) -> None:
    """Weights N(0, std), cut at `cut` deviations where given; biases 0."""
    for layer in layers:
        if cut is None:
            nn.init.normal_(layer.weight, std=std)
        else:
            nn.init.trunc_normal_(layer.weight, std=std, a=-cut * std, b=cut * std)
        nn.init.zeros_(layer.bias)


def check(method: Any, blocks: int | None = None) -> None:
    """Raise one InputError over all fields out of range."""
    wrong = []
    if method.bottleneck is not None and method.bottleneck < 1:
        wrong.append(Problem("bottleneck out of range", "method.bottleneck", "1 or more", str(method.bottleneck)))
    if method.reduction <= 0:
        wrong.append(Problem("reduction out of range", "method.reduction", "more than 0", str(method.reduction)))
    if method.activation not in ACTIVATIONS:
        fix = did_you_mean(method.activation, ACTIVATIONS)
        wrong.append(Problem("unknown activation", "method.activation", got=repr(method.activation), fix=fix))
    if not 0 <= method.dropout < 1:
        wrong.append(Problem("dropout out of range", "method.dropout", "0 <= p < 1", str(method.dropout)))
    most = "0 or more" if blocks is None else f"0 to {blocks - 1}"
    for name in ("skip", "drop"):
        k = getattr(method, name)
        if k < 0 or (blocks is not None and k >= blocks):
            wrong.append(Problem("blocks out of range", f"method.{name}", most, str(k)))
    raise_all(wrong)

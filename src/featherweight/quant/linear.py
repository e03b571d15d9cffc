"""Linear layers over codes: y = x Ŵᵀ + b, computed by the scheme."""

from typing import Any

from torch import Tensor, nn

from featherweight.quant.quantized import Quantized


class Multiplied(Quantized):
    """Mixin of linear layers: the product is the scheme's."""

    bias: Any
    shape: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        return self.scheme.linear(x, self.packed, self.shape, self.bias)


class QuantLinear(Multiplied, nn.Linear):  # type: ignore[override]
    """nn.Linear over codes."""

    plain = nn.Linear


class Turned(Multiplied):
    """Mixin of transformers' Conv1D, which keeps its weight as (in, out): the codes are those of the matrix (out, in),
    as with every linear layer, so that scales go with outputs and bitsandbytes' files, which turn it too, fit.
    """

    flip = True

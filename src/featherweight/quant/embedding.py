"""Embeddings over codes: only the rows that are looked up are decoded.

y = Ŵ[ids]        rows (n, H) = decode of those rows, then the plain module's own forward over them
"""

from typing import Any

import torch
from torch import Tensor, nn

from featherweight.quant.quantized import Quantized


class Looked(Quantized):
    """Mixin of embeddings. Classes that do more than to look up (Gemma scales) run over the rows found."""

    shape: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Embedding's name
        rows = self.scheme.rows(self.packed, self.shape, input.reshape(-1), self.dtype)
        if self.plain.forward is nn.Embedding.forward:
            return rows.view(*input.shape, self.shape[1])
        table = plain_over(self, rows)
        at = torch.arange(len(rows), device=input.device).view(input.shape)
        found: Tensor = self.plain.forward(table, at)
        return found


class QuantEmbedding(Looked, nn.Embedding):  # type: ignore[override]
    """nn.Embedding over codes."""

    plain = nn.Embedding


def plain_over(module: Any, rows: Tensor) -> Any:
    """A copy of an embedding, of its plain class, whose table is these rows; none of them is for padding."""
    table = object.__new__(module.plain)
    table.__dict__ |= module.__dict__ | {"padding_idx": None}
    table.__dict__["_parameters"] = module._parameters | {"weight": rows}
    return table

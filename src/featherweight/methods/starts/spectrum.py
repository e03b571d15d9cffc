"""The leading directions of a stream of rows, kept up to date batch by batch.

    [S V; X − x̄; √(n m/(n+m)) (μ − x̄)]  =  U S' V'ᵀ        n rows seen with mean μ, a batch X of m rows with mean x̄

Exact while no direction is cut off; with `size` of them kept, what was cut off is forgotten.
Source: Ross, Lim, Lin and Yang 2008, "Incremental learning for robust visual tracking".
"""

import torch
from torch import Tensor

TAU = 0.99  # the cosine between two batches from which on a direction stays


class Spectrum:
    """`vectors` (k, in) with orthonormal rows, `values` (k,) their singular values, k <= size."""

    mean: Tensor
    vectors: Tensor
    values: Tensor

    def __init__(self, size: int):
        self.size, self.seen = size, 0
        self.scatter = 0.0  # Σ ‖x − mean‖² of all rows seen
        self.stays: Tensor | None = None

    def add(self, X: Tensor) -> None:
        """Take in rows (m, in)."""
        m, n, mean = len(X), self.seen, X.mean(0)
        centered = X - mean
        parts, drift = [centered], 0.0
        if n:
            shift = (n * m / (n + m)) ** 0.5 * (self.mean - mean)
            drift = float(shift.square().sum())
            parts = [self.values[:, None] * self.vectors, centered, shift[None]]
        _, S, V = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        before = self.vectors if n else None
        self.values, self.vectors = S[: self.size], V[: self.size]
        self.scatter += float(centered.square().sum()) + drift
        self.mean = mean if not n else (n * self.mean + m * mean) / (n + m)
        self.seen = n + m
        if before is not None and len(before) == len(self.vectors):
            self.stays = torch.linalg.vecdot(before, self.vectors).abs() >= TAU

    @property
    def shares(self) -> Tensor:
        """The share of the variance that each direction explains, largest first."""
        return self.values.square() / max(self.scatter, torch.finfo(torch.float32).tiny)

    def settled(self, used: int) -> bool:
        """Whether the first `used` directions stayed where they were at the last batch."""
        return self.stays is not None and bool(self.stays[:used].all())

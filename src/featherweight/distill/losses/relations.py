"""Losses between relations of tokens to tokens, which have no width: X (b, h, s, d) -> R (b, h, s, s) -> (b, s).

    R = softmax(X Xᵀ / √d)                      row i: how token i relates to the tokens it may look at
    value_relation_kl   mean over heads of KL(R_t ‖ R_s) of the values           Wang et al. 2020 (MiniLM), L_VR
    relation_kl         the same on queries, keys or values, cut anew into a number of relation heads
                        that both widths divide by                               Wang et al. 2021 (MiniLMv2)

Two projections X of any widths can be compared. The paper's losses mask keys alone; here padded queries are left out as
well, by the mean over positions. In a causal model `keys` must hide the future, or the relation leaks it.
"""

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.distill.losses.maps import paired, seen
from featherweight.distill.losses.reduce import products


def split_heads(x: Tensor, heads: int, whose: str = "projection") -> Tensor:
    """(b, s, h·d) -> (b, h, s, d). Raises InputError where the width does not divide by `heads`."""
    if heads < 1 or x.shape[-1] % heads:
        wanted, fix = f"a multiple of {heads}", "choose other relation heads"
        raise InputError(Problem("the width does not divide into relation heads", whose, wanted, str(x.shape[-1]), fix))
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def log_relation(x: Tensor, keys: Tensor | None = None) -> Tensor:
    """log softmax(X Xᵀ / √d) over the keys a query may look at: (b, h, s, d) -> (b, h, s, s), -inf behind the mask."""
    scores = products(x, x)
    there = seen(keys, scores)
    blind = ~there.any(-1, keepdim=True)  # a padded query that sees nothing: its row is left out by the mean
    return scores.masked_fill(~(there | blind), -torch.inf).log_softmax(-1)


def relation(x: Tensor, keys: Tensor | None = None) -> Tensor:
    """R = softmax(X Xᵀ / √d): (b, h, s, d) -> (b, h, s, s); `keys` (b, 1 or s, s) True where a query may look."""
    return log_relation(x, keys).exp()


def multi_head_relation(x: Tensor, heads: int, keys: Tensor | None = None) -> Tensor:
    """MiniLMv2: all heads in one, cut anew into `heads`, and their relations: (b, s, w) -> (b, heads, s, s)."""
    return relation(split_heads(x, heads), keys)


def value_relation_kl(student: Tensor, teacher: Tensor, keys: Tensor | None = None) -> Tensor:
    """Mean over heads of KL(R_t ‖ R_s): values (b, h, s, d_s), (b, h, s, d_t) -> (b, s)."""
    log_s, log_t = paired(log_relation(student, keys), log_relation(teacher, keys))
    there = seen(keys, log_s) & (log_t > -torch.inf)
    zero = torch.zeros((), dtype=log_s.dtype, device=log_s.device)
    apart = torch.where(there, log_t, zero) - torch.where(there, log_s, zero)  # -inf minus -inf has no gradient
    return (log_t.exp() * apart).sum(-1).mean(1)


def relation_kl(student: Tensor, teacher: Tensor, heads: int, keys: Tensor | None = None) -> Tensor:
    """MiniLMv2's term for one of Q, K, V: projections (b, s, w_s), (b, s, w_t) -> (b, s), a mean over `heads`."""
    return value_relation_kl(split_heads(student, heads, "student"), split_heads(teacher, heads, "teacher"), keys)

"""Losses between attention maps: A_s, A_t (b, h, s, s), a query's row over its keys -> one value (b, s) a query.

    map_mse    mean over heads and keys of (A_s - A_t)²
    score_mse  the same on scores before the softmax       Jiao et al. 2019 (TinyBERT)
    map_kl     mean over heads of KL(A_t ‖ A_s)            Wang et al. 2020 (MiniLM), L_AT

`keys` (b, 1 or s, s) is True where a query may look: padding, and in a causal model the future, are left out of means
over keys, and so is a query that may look at nothing. Padded queries are left out by the mean over positions
(`reduce.py`). Head counts must be equal; multi-head relations (`relations.py`) need no such thing.
"""

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.distill.losses.logits import unlike
from featherweight.distill.losses.reduce import wide


def paired(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp32, the teacher's without gradient. Raises InputError naming both head counts where they differ."""
    if student.shape[1] != teacher.shape[1]:
        what, fix = "the student has another number of attention heads", "MiniLM(version=2) takes any number of heads"
        raise InputError(Problem(what, "loss", str(teacher.shape[1]), str(student.shape[1]), fix))
    if student.shape != teacher.shape:
        raise InputError(unlike(student, teacher, "maps over the same tokens"))
    return wide(student), wide(teacher.detach())


def seen(keys: Tensor | None, like: Tensor) -> Tensor:
    """(b, 1, s, s) True where a query may look; everywhere without `keys`."""
    if keys is None:
        return torch.ones_like(like[:, :1], dtype=torch.bool)
    return keys.bool().unsqueeze(1).expand(-1, -1, like.shape[-2], -1)


def map_mse(student: Tensor, teacher: Tensor, keys: Tensor | None = None) -> Tensor:
    """Mean over heads and over the keys a query may look at of the squared difference: (b, h, s, s) twice -> (b, s)."""
    a_s, a_t = paired(student, teacher)
    there = seen(keys, a_s)
    squares = torch.where(there, a_s - a_t, 0.0).square().mean(1)  # (b, s, s)
    return squares.sum(-1) / there.squeeze(1).sum(-1).clamp(min=1)


score_mse = map_mse  # TinyBERT's code puts zeros for the entries behind the mask: here they are left out of the mean


def map_kl(student: Tensor, teacher: Tensor, keys: Tensor | None = None) -> Tensor:
    """Mean over heads of KL(A_t ‖ A_s) on probabilities: (b, h, s, s) twice -> (b, s)."""
    a_s, a_t = paired(student, teacher)
    there, tiny = seen(keys, a_s), torch.finfo(a_s.dtype).tiny
    terms = a_t * (a_t.clamp(min=tiny).log() - a_s.clamp(min=tiny).log())
    return torch.where(there, terms, 0.0).sum(-1).mean(1)

"""T-Few's three losses over the choices of a row, and the score that ranks them (Liu et al. 2022, equations 1 to 3).

    L_LM = - 1/T Σ_t log p(y_t | x, y_<t)                              y: the correct choice, T its tokens
    L_UL = - Σ_n Σ_t log(1 - p(ŷ_t⁽ⁿ⁾ | x, ŷ_<t⁽ⁿ⁾)) / Σ_n T⁽ⁿ⁾          ŷ⁽ⁿ⁾: the incorrect choices, T⁽ⁿ⁾ their tokens
    β(x, y) = 1/T Σ_t log p(y_t | x, y_<t)
    L_LN = - log( exp β(x, y) / (exp β(x, y) + Σ_n exp β(x, ŷ⁽ⁿ⁾)) )

Tensors: `log_p`, `log_not` (rows, choices, tokens), log p and log(1 - p) of each token; `real` of the same shape, which
of them are there; `answer` (rows), the correct choice. A choice without a real token is absent. One loss per row, in
nats. The authors' code adds 0.01 inside the logarithm of L_UL; the equations here are the paper's, kept finite by where
log(1 - p) comes from (`token_log_probabilities`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def language_loss(log_p: Tensor, real: Tensor, answer: Tensor) -> Tensor:
    """L_LM (rows): the mean of -log p over the tokens of the correct choice."""
    return -mean_log_p(log_p, real).gather(1, answer[:, None]).squeeze(1)


def unlikelihood_loss(log_not: Tensor, real: Tensor, answer: Tensor) -> Tensor:
    """L_UL (rows): the mean of -log(1 - p) over the tokens of all incorrect choices together; 0 where there is none."""
    wrong = real & (torch.arange(real.shape[1], device=real.device) != answer[:, None])[..., None]
    return -log_not.masked_fill(~wrong, 0).sum((1, 2)) / wrong.sum((1, 2)).clamp_min(1)


def normalized_loss(log_p: Tensor, real: Tensor, answer: Tensor) -> Tensor:
    """L_LN (rows): cross-entropy of the correct choice among all, by their β."""
    return -mean_log_p(log_p, real).log_softmax(1).gather(1, answer[:, None]).squeeze(1)


def mean_log_p(log_p: Tensor, real: Tensor) -> Tensor:
    """β (rows, choices): log-likelihood per token; -inf for an absent choice."""
    count = real.sum(2)
    return (summed_log_p(log_p, real) / count.clamp_min(1)).masked_fill(count == 0, -torch.inf)


def summed_log_p(log_p: Tensor, real: Tensor) -> Tensor:
    """Log-likelihood (rows, choices) of whole choices: the more tokens, the lower; -inf for an absent choice."""
    return log_p.masked_fill(~real, 0).sum(2).masked_fill(~real.any(2), -torch.inf)


def token_log_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log(1 - p)) of `targets` (...) from `logits` (..., V), in fp32 at least.

    1 - p is the mass of all other tokens, summed as such: finite and with its gradient also where p rounds to 1.
    """
    logits, index = logits.to(torch.promote_types(logits.dtype, torch.float32)), targets[..., None]
    whole = logits.logsumexp(-1)
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1)
    return logits.gather(-1, index).squeeze(-1) - whole, others - whole

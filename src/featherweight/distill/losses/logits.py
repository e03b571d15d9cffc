"""Losses between the logits of student and teacher: z_s, z_t (…, V) -> one value (…) a position, in nats.

    p = softmax(z_t / T)    q = softmax(z_s / T)    T the temperature

    kl                    T² KL(p ‖ q)          Hinton, Vinyals and Dean 2015; Sanh et al. 2019 (DistilBERT)
    reverse_kl            T² KL(q ‖ p)          Gu et al. 2023 (MiniLLM)
    generalized_jsd       T² [β KL(p ‖ m) + (1-β) KL(q ‖ m)],  m = β p + (1-β) q       Agarwal et al. 2023 (GKD)
    soft_cross_entropy    -Σ p log q            Jiao et al. 2019 (TinyBERT): KL(p ‖ q) + H(p)
    logit_mse             Σ_v (z_s - z_t)²      DistilBERT's optional term
    argmax_cross_entropy  -log q[argmax z_t]    the teacher's answer as a hard label

d/dz_s of KL(p ‖ q) is (q - p)/T, and q - p falls as 1/T too: the factor T² keeps the gradient of one size, so that the
weights of a sum of losses need no tuning anew with T. Codes differ silently here, so it is an argument: `squared=True`
multiplies by T² (Hinton, DistilBERT), False does not (TinyBERT, GKD).
No gradient flows into the teacher's logits. Both must have one vocabulary: V is compared.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from featherweight.core.errors import InputError, Problem
from featherweight.distill.losses.reduce import wide


def softened(student: Tensor, teacher: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """log q and log p. Raises InputError for a T that is not positive and for shapes that differ."""
    if not T > 0:
        raise InputError(Problem("no temperature", "temperature", "a number above 0", repr(T)))
    if student.shape != teacher.shape:
        raise InputError(unlike(student, teacher, "one vocabulary and the same positions"))
    return log_softmax(wide(student) / T, -1), log_softmax(wide(teacher.detach()) / T, -1)


def unlike(student: Tensor, teacher: Tensor, expected: str) -> Problem:
    """Tensors that cannot be compared."""
    got = f"{tuple(student.shape)} of the student, {tuple(teacher.shape)} of the teacher"
    return Problem("the student's tensor has another shape than the teacher's", "loss", expected, got)


def divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a ‖ b) = Σ_v a (log a - log b): (…, V) -> (…); where a is 0 the term is 0."""
    terms = log_a.exp() * (log_a - log_b)
    return torch.where(log_a == -torch.inf, 0.0, terms).sum(-1)


def factor(T: float, squared: bool) -> float:
    return T * T if squared else 1.0


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, squared: bool = True) -> Tensor:
    """T² KL(p ‖ q): (…, V), (…, V) -> (…). 0 where the logits agree up to a constant a position."""
    log_q, log_p = softened(student, teacher, temperature)
    return factor(temperature, squared) * divergence(log_p, log_q)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, squared: bool = True) -> Tensor:
    """T² KL(q ‖ p): (…, V), (…, V) -> (…). The student is drawn to one mode of the teacher rather than over all."""
    log_q, log_p = softened(student, teacher, temperature)
    return factor(temperature, squared) * divergence(log_q, log_p)


def generalized_jsd(
    student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 1.0, squared: bool = False
) -> Tensor:
    """β KL(p ‖ m) + (1-β) KL(q ‖ m), m = β p + (1-β) q: (…, V), (…, V) -> (…); at most ln 2 for β = 1/2 and T = 1.

    At β = 0 and 1 it is KL(p ‖ q) and KL(q ‖ p), as GKD's implementations have it: the limits of the loss over β and
    over 1-β. The loss itself goes to 0 there, so that it jumps: a β of 0.0001 is 10,000 times smaller than one of 0.
    """
    if not 0 <= beta <= 1:
        raise InputError(Problem("no share of a mixture", "beta", "a number from 0 to 1", repr(beta)))
    if beta in (0, 1):
        return (reverse_kl if beta else kl)(student, teacher, temperature, squared)
    log_q, log_p = softened(student, teacher, temperature)
    share = log_p.new_tensor(beta)
    log_m = torch.logaddexp(log_p + share.log(), log_q + torch.log1p(-share))
    return factor(temperature, squared) * (beta * divergence(log_p, log_m) + (1 - beta) * divergence(log_q, log_m))


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0, squared: bool = False) -> Tensor:
    """-Σ_v p log q: (…, V), (…, V) -> (…). The gradient of the KL, and H(p) more in value."""
    log_q, log_p = softened(student, teacher, temperature)
    return -factor(temperature, squared) * (log_p.exp() * log_q).sum(-1)


def argmax_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-log softmax(z_s)[argmax z_t]: (…, V), (…, V) -> (…)."""
    log_q, log_p = softened(student, teacher, 1.0)
    return -log_q.gather(-1, log_p.argmax(-1, keepdim=True)).squeeze(-1)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_v (z_s - z_t)²: (…, V), (…, V) -> (…). A sum over the vocabulary, as in DistilBERT's code."""
    if student.shape != teacher.shape:
        raise InputError(unlike(student, teacher, "one vocabulary and the same positions"))
    return (wide(student) - wide(teacher.detach())).square().sum(-1)

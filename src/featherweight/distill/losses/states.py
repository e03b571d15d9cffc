"""Losses between hidden states: h_s, h_t (b, s, d) -> one value (b, s) a token.

    state_mse     1/d Σ_d (h_s - h_t)²                  Jiao et al. 2019 (TinyBERT): hidden states and embeddings
    state_cosine  1 - h_s·h_t / (‖h_s‖ ‖h_t‖)           Sanh et al. 2019 (DistilBERT): the last states

Widths must be equal; a student of another width takes relation losses (`relations.py`), which compare tokens with
tokens. No gradient flows into the teacher's states.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from featherweight.core.errors import InputError
from featherweight.distill.losses.logits import unlike
from featherweight.distill.losses.reduce import wide


def paired(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp32, the teacher's without gradient. Raises InputError where the shapes differ."""
    if student.shape != teacher.shape:
        raise InputError(unlike(student, teacher, "one width and the same tokens"))
    return wide(student), wide(teacher.detach())


def state_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over d of the squared difference: (b, s, d), (b, s, d) -> (b, s)."""
    h_s, h_t = paired(student, teacher)
    return (h_s - h_t).square().mean(-1)


def state_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(h_s, h_t): (b, s, d), (b, s, d) -> (b, s), between 0 and 2."""
    h_s, h_t = paired(student, teacher)
    return 1 - cosine_similarity(h_s, h_t, dim=-1)

"""The k most probable classes of a teacher and all others as one: k + 1 classes in place of V.

    p = softmax(z_t / T)    p̃ = (p_1, …, p_k, 1 - Σ p_i)    q̃ the student's probabilities of the same classes

    D(p̃ ‖ q̃) ≤ D(p ‖ q)      for KL either way and the Jensen-Shannon divergence: classes put together can only
                               hide a difference (data processing); equal where p/q is one number over the others

So what a student is trained on is a lower bound of what it would be trained on, never a different aim; leaving the rest
out (not a divergence) or scaling k classes to 1 (no signal at k = 1) are neither. Probabilities are those at T, for the
mass of the rest at one temperature does not tell that at another.

T · log p̃ are logits whose softmax at T is p̃: every loss between logits takes them as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from featherweight.distill.losses.reduce import wide
from featherweight.distill.taps import Seen


def coarse(logits: Tensor, top: int, T: float) -> tuple[Tensor, Tensor]:
    """log p̃ (units, top + 1), the rest last, and the classes (units, top), most probable first."""
    log_p = log_softmax(wide(logits) / T, -1)
    best, words = log_p.topk(top, -1)
    return torch.cat([best, rest(log_p, words)], -1), words


def rest(log_p: Tensor, words: Tensor) -> Tensor:
    """log of the mass of all classes but these: (units, 1). Summed over them, for 1 - Σ loses what is small."""
    return log_p.scatter(-1, words, -torch.inf).logsumexp(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Coarse(Seen):
    """A teacher of which log p̃ is known (in `logits`), and which classes those are."""

    words: Tensor | None = None
    T: float = 1.0

    def against(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        assert self.words is not None
        log_q = log_softmax(wide(logits) / self.T, -1)
        mine = torch.cat([log_q.gather(-1, self.words), rest(log_q, self.words)], -1)
        return self.T * mine, self.T * self.logits

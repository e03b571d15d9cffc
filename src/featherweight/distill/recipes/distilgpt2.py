"""DistilGPT-2: DistilBERT's sum over a causal language model, the next token's loss in place of hidden ones'.

    5 T² KL(p ‖ q) + 2 L_clm + 1 (1 - cos of the last hidden states), T = 2

Source: the published code of Sanh et al. 2019, arXiv:1910.01108, which trained it on OpenWebText. Its README gives the
weights of DistilBERT alone; these are taken over.
"""

from dataclasses import dataclass
from typing import ClassVar

from featherweight.distill.recipes.distilbert import DistilBERT


@dataclass(frozen=True, repr=False)
class DistilGPT2(DistilBERT):
    """5 T² KL + 2 next token + 1 cosine of the last hidden states, T = 2, over CausalLM alone."""

    autos: ClassVar[tuple[str, ...]] = ("AutoModelForCausalLM",)

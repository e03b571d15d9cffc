"""The field's rule for work, by parameters and tokens, as T-Few's Table 1 has it (Liu et al. 2022, arXiv:2205.05638).

FLOPs of a token, forward       2 N      decoder of N parameters (Kaplan et al. 2020, arXiv:2001.08361)
                                N        encoder-decoder: half of its parameters see each token
FLOPs of a token, training      3 ×      forward, and twice that backward

break-even: n queries such that  training + n · tuned  <  n · untuned
"""

from __future__ import annotations

from math import floor, inf

TOKEN_BYTES = 4  # of a token kept on disk, as T-Few counts the prompts of in-context learning


def inference_flops(parameters: float, tokens: float, encoder_decoder: bool = False) -> float:
    """Of one query of so many tokens: the input with its examples, and all choices."""
    return (1 if encoder_decoder else 2) * parameters * tokens


def training_flops(parameters: float, tokens: float, rows: int, encoder_decoder: bool = False) -> float:
    """Of `rows` rows (steps x batch) of so many tokens each."""
    return 3 * rows * inference_flops(parameters, tokens, encoder_decoder)


def prompt_tokens(shots: float, shot: float, query: float) -> float:
    """Tokens of a query with its examples in front."""
    return shots * shot + query


def break_even(training: float, tuned: float, untuned: float) -> float:
    """The first whole number of queries by which training has paid for itself; inf where a query costs no less."""
    return inf if tuned >= untuned else floor(training / (untuned - tuned)) + 1

"""Losses between a teacher and a student: pure functions of their tensors, one value a position, reduced apart.

    logits (…, V)               -> (…)       logits.py
    hidden states (b, s, d)     -> (b, s)    states.py
    attention maps (b, h, s, s) -> (b, s)    maps.py
    queries, keys, values       -> (b, s)    relations.py

`reduce.py` makes means of them, over real positions alone. All are computed in fp32 or wider.
"""

from featherweight.distill.losses.logits import (
    argmax_cross_entropy,
    generalized_jsd,
    kl,
    logit_mse,
    reverse_kl,
    soft_cross_entropy,
)
from featherweight.distill.losses.maps import map_kl, map_mse, score_mse
from featherweight.distill.losses.reduce import mean, row_mean
from featherweight.distill.losses.relations import multi_head_relation, relation, relation_kl, value_relation_kl
from featherweight.distill.losses.states import state_cosine, state_mse

__all__ = [
    "argmax_cross_entropy",
    "generalized_jsd",
    "kl",
    "logit_mse",
    "map_kl",
    "map_mse",
    "mean",
    "multi_head_relation",
    "relation",
    "relation_kl",
    "reverse_kl",
    "row_mean",
    "score_mse",
    "soft_cross_entropy",
    "state_cosine",
    "state_mse",
    "value_relation_kl",
]

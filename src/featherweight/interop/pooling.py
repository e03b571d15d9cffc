"""What a task head reads of the trunk: its own choice, or the mean of the last states as encoders of sentences have it.

    trunk(ids).pooler_output     BERT's own:  tanh(W h₀ + b), of the first token alone
                                 mean:        Σ m_i h_i / Σ m_i, m the attention mask

The trunk's class changes in place and its tensors stay: adapters, fingerprints and checkpoints see the same base. The
`config.json` of a merged model says `featherweight_pool`; `load_base` reads it, plain transformers does not.
Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084, section 3.
"""

from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from typing import Any

from torch import Tensor, nn

from featherweight.core.derived import derive
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import frozen_class, reclass

POOLS = ("own", "mean")
KEY = "featherweight_pool"  # in config.json


def pool_of(model: Any) -> str:
    """What the head of a model reads: "own", or "mean"."""
    return str(getattr(getattr(model, "config", None), KEY, "own"))


def set_pool(model: Any, pool: str) -> None:
    """Let the head of a transformers model read `pool`; "own" leaves the model as it was saved.

    Raises InputError for an unknown pool, and for a model whose head does not read `pooler_output`.
    """
    if pool not in POOLS:
        raise InputError(Problem("unknown pool", "task.pool", " or ".join(map(repr, POOLS)), repr(pool)))
    chosen = pool_of(model) if pool == "own" else pool
    if chosen == "own":
        return
    trunk = model.base_model
    raise_all(refusals(model, trunk))
    reclass(trunk, mean_class(frozen_class(trunk)))
    setattr(model.config, KEY, chosen)


def refusals(model: nn.Module, trunk: nn.Module) -> list[Problem]:
    """A head reads `pooler_output` where the trunk was built with a pooler; the mean needs to know the padding."""
    name, fix = type(model).__name__, "leave pool out: the head then reads what it was made for"
    if trunk is model or not isinstance(getattr(trunk, "pooler", None), nn.Module):
        return [Problem("the head does not read a pooled state", "task.pool", "a trunk with a pooler, as BERT's", name, fix)]  # fmt: skip  # noqa: E501
    if "attention_mask" not in signature(trunk.forward).parameters:
        return [Problem("the trunk takes no attention mask", "task.pool", "a forward with attention_mask", name, fix)]
    return []


@cache
def mean_class(cls: Any) -> Any:
    """`cls` with the mean in place of its `pooler_output`: made once."""
    return derive(cls, mean_class, forward=mean_forward(cls))


def mean_forward(cls: Any) -> Callable[..., Any]:
    taken = signature(cls.forward)

    @wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = taken.bind(self, *args, **kwargs).arguments.get("attention_mask")
        out = cls.forward(self, *args, **{**kwargs, "return_dict": True})
        out.pooler_output = mean(out.last_hidden_state, mask)
        return out.to_tuple() if kwargs.get("return_dict") is False else out

    return forward


def mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, d): the mean over real tokens of `states` (batch, seq, d); `mask` (batch, seq) is 1 where one is real."""
    if mask is None:
        return states.mean(1)
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

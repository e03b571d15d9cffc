"""TRAINABLE_TOKENS: `<embedding>.trainable_tokens_delta (k, H)`, replacement rows in spite of the name, in the order of
`token_indices`; PEFT writes them once more for every module that is tied to the embedding.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX, named, targeted
from featherweight.core.encoded import identity
from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.methods.tokens import Tokens

FIELDS = ("token_indices", "target_modules", "init_weights")
DELTA = "trainable_tokens_delta"


def sharers(model: nn.Module, adapters: Adapters) -> list[str]:
    """Every module whose weight is the embedding's, the embedding itself first."""
    modules = dict(base_modules(model))
    table = identity(modules[next(iter(adapters))], "weight")
    return [path for path, m in modules.items() if identity(m, "weight") is table]


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    modules = [path for path, _ in base_modules(model)]
    top = sharers(model, adapters)[0]
    return {
        "token_indices": list(cast(Tokens, method).tokens),
        "target_modules": named([top], modules),
        "init_weights": True,
    }


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    own = next(k for k in state if k.endswith(f".{DELTA}"))
    shape = tuple(state[own].shape)
    keys = [f"{PREFIX}{path}.{DELTA}" for path in sharers(model, adapters)]
    seen: list[Tensor] = []
    return [Entry(key, shape, (own,), only, partial(agreed, seen, key)) for key in keys]


def only(given: Sequence[Tensor]) -> Tensor:
    return given[0].clone()  # safetensors keeps no two names for one tensor


def agreed(seen: list[Tensor], key: str, kept: Tensor) -> tuple[Tensor]:
    """The rows, which modules that share one tensor must share too."""
    if seen and not torch.equal(seen[0], kept):
        raise InputError(Problem("other rows than the module has that this one is tied to", key))
    seen.append(kept)
    return (kept,)


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    typed(config, {"token_indices": (list,), "target_modules": (list, str)}, where)
    modules = dict(base_modules(model))
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    if config.get("target_modules") is not None:
        asked = targeted(config, list(modules), where)
        foreign = [p for p in asked if table is not None and modules[p] is not table
                   and identity(modules[p], "weight") is not identity(table, "weight")]  # fmt: skip
        if foreign:
            raise InputError(Problem("trained rows of something else than the input embedding",
                                     f"{where}:target_modules", got=listed(foreign)))  # fmt: skip
    return Tokens(tokens=tuple(config.get("token_indices") or ()))


CODEC = Codec("TRAINABLE_TOKENS", FIELDS, config, entries, method)

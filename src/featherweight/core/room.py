"""Room among learned positions: how many tokens a model has a vector for, and what virtual tokens take of them.

virtual tokens + tokens of the row  <=  positions
"""

from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.blank import is_bare
from featherweight.core.errors import Problem
from featherweight.core.host import base_modules, hosts
from featherweight.core.method import Method
from featherweight.core.order import Batch, Frame

SPARE = 8  # rows of a table of positions before the first one: 2 in RoBERTa and OPT


def places(host: nn.Module) -> int | None:
    """How many tokens a host has positions for where they are learned, as its config states it; None for those that
    are computed: a rotation, a bias or a sine goes on. The table is known by its rows, a few more where positions count
    from a padding index.
    """
    config: Any = getattr(host, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    words = host.get_input_embeddings()  # type: ignore[operator]
    tables = [m for _, m in base_modules(host) if isinstance(m, nn.Embedding) and m is not words]
    table = next((m for m in tables if stated <= m.num_embeddings <= stated + SPARE), None)
    return None if table is None else stated - (0 if table.padding_idx is None else table.padding_idx + 1)


def taken(model: nn.Module) -> int:
    """How many learned positions of a model the adapters that are on take from the text: of its rows, the most."""
    most = 0
    for _, host in hosts(model):
        state, frames = host.switch, {n: getattr(a, "frame", None) for n, a in host.adapters.items()}
        seated = {n: host.adapters[n] for n, frame in frames.items() if frame is not None and frame.places is not None}
        for stack in state.rows or (state.active,):
            most = max(most, sum(seated[n].count + seated[n].shift for n in stack if n in seated))
    return most


def wanted(model: nn.Module, method: Method | None) -> int:
    """`taken`, of a method that is about to be attached where one is given."""
    if method is None:
        return taken(model)
    seats = [site for site in method.hosts(model) if site.role == "tokens"]
    shared = method.shared(model) if seats else None
    made: list[Any] = [method.build(site, shared) for site in seats]
    return max((a.count + a.shift for a in made if a.frame.places is not None), default=0)


def beyond(host: nn.Module, batch: Batch, shape: Frame, told: Tensor | None, seen: int) -> list[Problem]:
    """The problem of more tokens than the host has learned positions. What is told of positions is only looked at where
    their number alone does not say that all is well: pads take none. Nothing is wrong where the host has shapes alone.
    """
    if shape.places is None:
        return []
    shift = max(sum(a.shift for a in stack) for _, stack in batch.groups)
    text = batch.length + max(seen - batch.most, 0)
    need = text + batch.most + shift
    if need <= shape.places or is_bare(next(host.parameters())):
        return []
    if told is not None and not torch.compiler.is_compiling():
        need = int(told.max()) + 1 - shape.offset
    if need <= shape.places:
        return []
    own = batch.most + shift
    fix = f"rows of at most {shape.places - own} tokens (length), or fewer virtual ones"
    got = f"{need}: {need - own} of the row and {own} virtual ones"
    return [Problem("more tokens than the model has learned positions", "length", f"at most {shape.places}", got,
                    fix if own < shape.places else "fewer virtual tokens")]  # fmt: skip

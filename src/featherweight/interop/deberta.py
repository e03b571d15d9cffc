"""DeBERTa's relative positions: a table that is read without being called, and projections called once for all rows.

While adapters are attached the encoder calls its table as a module, so that an adapter on it has its say; and where
rows of the batch have adapters of their own, the bias of relative positions is computed for each of their stacks.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.base import Base
from featherweight.core.derived import derive
from featherweight.core.host import Host, base_modules, frozen_class, reclass, stack_of

POSITIONS = ("pos_key_proj", "pos_query_proj", "key_proj", "query_proj")


def reading(cls: Any) -> Any:
    """The encoder's class, its table of relative positions called."""

    def get_rel_embedding(self: Any) -> Any:
        table = self.rel_embeddings
        W = table(torch.arange(table.num_embeddings, device=table.weight.device))
        return cls.get_rel_embedding(Seen(self, rel_embeddings=Called(W)))

    return derive(cls, reading, get_rel_embedding=get_rel_embedding)


def biasing(cls: Any) -> Any:
    """The attention's class, its bias computed for each stack of adapters among the rows."""

    def disentangled_attention_bias(self: Any, query: Tensor, key: Tensor, *args: Any) -> Tensor:
        children = self._modules
        hosts: dict[str, Any] = {n: children[n] for n in POSITIONS if isinstance(children.get(n), Host)}
        rows = next(iter(hosts.values())).switch.rows if hosts else None
        if rows is None:
            return cls.disentangled_attention_bias(self, query, key, *args)
        members: defaultdict[Any, list[int]] = defaultdict(list)
        for i, names in enumerate(rows):
            members[tuple(stack_of(m, names) for m in hosts.values())].append(i)
        q, k = (t.unflatten(0, (len(rows), -1)) for t in (query, key))  # (rows, heads of their items, seq, d)
        made = []
        for stacks, index in members.items():
            bases = {n: Base(m, stack) for (n, m), stack in zip(hosts.items(), stacks, strict=True)}
            mine = (q[index].flatten(0, 1), k[index].flatten(0, 1))
            made.append(cls.disentangled_attention_bias(Seen(self, **bases), *mine, *args))
        order = torch.tensor([i for index in members.values() for i in index], device=query.device).argsort()
        return torch.cat([m.unflatten(0, (-1, q.shape[1])) for m in made])[order].flatten(0, 1)

    return derive(cls, biasing, disentangled_attention_bias=disentangled_attention_bias)


class Seen:
    """A module with other attributes, for a function of its class to read; torch.compile follows it."""

    def __init__(self, module: nn.Module, **others: Any):
        self.module = module
        self.others = others

    def __getattr__(self, name: str) -> Any:
        return self.others[name] if name in self.others else getattr(self.module, name)


class Called:
    """What calling an embedding for all its rows gave, where its `weight` is read."""

    def __init__(self, weight: Tensor):
        self.weight = weight


# class -> what makes it again, and the method that has to be there for it
MAKERS: dict[str, tuple[Any, str]] = {
    "DebertaV2Encoder": (reading, "get_rel_embedding"),
    "DisentangledSelfAttention": (biasing, "disentangled_attention_bias"),
}


def settle(model: nn.Module) -> None:
    """Called after every attach."""
    for module, cls, maker, method in parts(model):
        if maker not in made_by(cls) and hasattr(cls, method) and getattr(module, "relative_attention", False):
            reclass(module, maker(cls))


def leave(model: nn.Module) -> None:
    """Called after the last detach."""
    for module, cls, maker, _ in parts(model):
        if maker in made_by(cls):
            reclass(module, cls.__mro__[1])


def parts(model: nn.Module) -> Iterator[tuple[nn.Module, Any, Any, str]]:
    for _, module in base_modules(model):
        cls = frozen_class(module)
        if cls.__name__ in MAKERS:
            yield module, cls, *MAKERS[cls.__name__]


def made_by(cls: Any) -> tuple[Any, ...]:
    return getattr(cls, "made_from", (cls, ()))[1]

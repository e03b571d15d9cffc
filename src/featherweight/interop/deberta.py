"""DeBERTa's relative positions: a table that is read without being called, and projections called once for all rows.

While adapters are attached the encoder calls its table as a module, so that an adapter on it has its say; and where
rows of the batch have adapters of their own, the bias of relative positions is computed for each of their stacks.
"""

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.base import Base, view
from featherweight.core.derived import derive
from featherweight.core.host import Host, base_modules, frozen_class, reclass, stack_of

POSITIONS = ("pos_key_proj", "pos_query_proj", "key_proj", "query_proj")


def reading(cls: Any) -> Any:
    """The encoder's class, its table of relative positions called."""

    def get_rel_embedding(self: Any) -> Any:
        table = self.rel_embeddings
        W = table(torch.arange(table.num_embeddings, device=table.weight.device))
        return cls.get_rel_embedding(seen(self, rel_embeddings=SimpleNamespace(weight=W)))

    return derive(cls, reading, get_rel_embedding=get_rel_embedding)


def biasing(cls: Any) -> Any:
    """The attention's class, its bias computed for each stack of adapters among the rows."""

    def disentangled_attention_bias(self: Any, query: Tensor, key: Tensor, *args: Any) -> Tensor:
        hosts = {n: m for n in POSITIONS if isinstance(m := getattr(self, n, None), Host)}
        rows = next((m.switch.rows for m in hosts.values()), None)
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
            made.append(cls.disentangled_attention_bias(seen(self, **bases), *mine, *args))
        order = torch.tensor([i for index in members.values() for i in index], device=query.device).argsort()
        return torch.cat([m.unflatten(0, (-1, q.shape[1])) for m in made])[order].flatten(0, 1)

    return derive(cls, biasing, disentangled_attention_bias=disentangled_attention_bias)


def seen(module: Any, **children: Any) -> nn.Module:
    """A shallow copy of a module with other children."""
    copy = view(module, {}) if isinstance(module, Host) else object.__new__(type(module))
    copy.__dict__.update(vars(module))
    copy.__dict__["_modules"] = module._modules | children
    return copy


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

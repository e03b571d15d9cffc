"""Prefix tuning: trained keys and values in front of those of every attention.

    K' = [P_k; K]     V' = [P_v; V]     P_k, P_v (n, d_kv), one pair for each attention module
    while training    [P_k, P_v] = W₂ tanh(W₁ E + b₁) + b₂

n is the number of virtual tokens, d_kv = kv heads · head size. Every query sees the prefix, under any mask and past a
sliding window; it has no place in the KV cache. Decoders and encoders count it in their positions, as PEFT does; an
encoder-decoder has three prefixes a layer (encoder, decoder, cross-attention) and counts none. Relative position
biases are 0 there.
The re-parameterization (`hidden` = m > 0) has one E (n, d) and W₁ (m, d) for the whole model and a W₂ (2 d_kv, m) for
each attention. It is dropped when saved for use and kept in the state that resumes.
Count: 2 L n d_kv for L attentions; while training with m: n d + (d m + m) + L (m 2 d_kv + 2 d_kv).
Init: E, P normal with variance 1, W₁ and W₂ as linear layers are. Not the identity. Merge: none.
Where prefixes are put before the first layer alone (PreEmbed of Hu et al. 2021) it is `Prompt`.
Source: Li and Liang 2021, "Prefix-tuning: Optimizing continuous prompts for generation", arXiv:2101.00190.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.attending import AtAttention, Attention, attentions
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.order import Frame
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.virtual import Virtual, encodes, frame, parameters, seats


@dataclass(frozen=True, repr=False)
class Prefix(Method):
    """`tokens` trained keys and values in the top `layers` blocks (None: all); `hidden=0`: without an MLP."""

    tokens: int = 10
    hidden: int = 512
    layers: int | None = None

    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    place: ClassVar[str] = "keys and values of every attention"
    mergeable: ClassVar[bool] = False
    identity: ClassVar[bool] = False
    lr: ClassVar[float] = 3e-4
    lr_source: ClassVar[str] = "measured on sst2: from 1e-3 its MLP stays at the starting loss; Li and Liang 2021: 5e-5"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        raise_all(self.wrong())
        return [*counted(model), *(a.site for a in attentions(model, "past", self.layers))]

    def wrong(self) -> list[Problem]:
        low = [("tokens", self.tokens, 1), ("hidden", self.hidden, 0), ("layers", self.layers, 1)]
        return [
            Problem("out of range", f"method.{name}", f"at least {least}", str(value))
            for name, value, least in low
            if value is not None and value < least
        ]

    def shared(self, model: nn.Module) -> Any:
        """The attentions by path, and E and W₁ where there is a re-parameterization."""
        there = attentions(model, "past", self.layers)
        like = there[0].key.host.weight  # (d_kv, d)
        kind: dict[str, Any] = {"dtype": master(like.dtype), "device": like.device}
        return {a.path: a for a in there}, Source(
            self.tokens, like.shape[1], self.hidden, kind
        ) if self.hidden else None

    def build(self, site: Site, shared: Any) -> Adapter:
        there, source = shared
        if site.path not in there:
            return Shift(frame(site), self.tokens)
        return KeysValues(there[site.path], self.tokens, source, first=site.path == next(iter(there)))

    def export(self, adapters: Adapted) -> dict[str, Tensor] | None:
        """The prefixes themselves."""
        if not self.hidden:
            return None
        made = {path: a.past() for path, a in adapters.items() if isinstance(a, KeysValues)}
        return {f"{path}.{name}": t.detach() for path, of in made.items() for name, t in zip(NAMES, of, strict=True)}

    def recorded(self, adapters: Adapted) -> Method:
        return replace(self, hidden=0)


NAMES = ("prompt_keys", "prompt_values")


def counted(model: nn.Module) -> list[Site]:
    """Where a model is told its positions; nowhere in an encoder-decoder."""
    trunk = getattr(model, "base_model", model)
    told = {"input_ids", "inputs_embeds", "position_ids"} <= set(parameters(trunk))
    return seats(model)[:1] if told and not encodes(model) else []


class Shift(Virtual):
    """Moves the positions of a row behind its prefix."""

    def __init__(self, seat: Frame, by: int):
        super().__init__(seat)
        self.shift = by


class Source(nn.Module):
    """tanh(W₁ E + b₁), (n, m): what all prefixes of a model are made from."""

    def __init__(self, tokens: int, d: int, hidden: int, kind: Mapping[str, Any]):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, d, **kind))
        self.linear = nn.Linear(d, hidden, **kind)

    def forward(self) -> Tensor:
        return torch.tanh(self.linear(self.embedding))


class KeysValues(AtAttention):
    """On an attention module: prompt_keys and prompt_values (n, d_kv), or the shared source and W₂ that make them."""

    def __init__(self, at: Attention, tokens: int, source: Source | None, first: bool):
        super().__init__()
        self.first = first  # it answers for the parameters of the source
        key, value = at.key.host.weight, at.value.host.weight
        self.sizes = (int(key.shape[0]), int(value.shape[0]))
        kind: dict[str, Any] = {"dtype": master(key.dtype), "device": key.device}
        if source is None:
            self.prompt_keys, self.prompt_values = (nn.Parameter(torch.randn(tokens, d, **kind)) for d in self.sizes)
        else:
            self.source, self.linear = source, nn.Linear(source.linear.out_features, sum(self.sizes), **kind)

    def past(self) -> tuple[Tensor, Tensor]:
        if "source" not in self._modules:
            return self.prompt_keys, self.prompt_values
        keys, values = self.linear(self.source()).split(self.sizes, 1)
        return keys, values

    def added(self) -> int:
        mine = super().added()
        return mine if self.first or "source" not in self._modules else mine - count(self.source)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

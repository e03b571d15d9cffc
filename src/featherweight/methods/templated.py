"""The adapters of P-tuning: what makes the virtual tokens, and what puts them among a row's own."""

from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem
from featherweight.core.order import Frame
from featherweight.core.virtual import Virtual


class PromptEncoder(nn.Module):
    """h (n, d): prompt_embeddings itself, or what MLP and LSTM make of embedding.weight."""

    def __init__(self, n: int, d: int, encoder: str, hidden: int | None, kind: dict[str, Any]):
        super().__init__()
        self.size = (n, d)
        if encoder == "none":
            self.prompt_embeddings = nn.Parameter(torch.randn(n, d, **kind))
            return
        self.embedding = nn.Embedding(n, d, **kind)
        wide = hidden or d
        if encoder == "lstm":
            half = hidden or d // 2
            self.lstm_head = Lstm(d, half, **kind)
            wide = 2 * half
        layers = (nn.Linear(2 * half, wide, **kind) if encoder == "lstm" else nn.Linear(d, wide, **kind), nn.ReLU())
        self.mlp_head = nn.Sequential(*layers, nn.Linear(wide, d, **kind))

    def forward(self) -> Tensor:
        if "prompt_embeddings" in self._parameters:
            return self.prompt_embeddings
        h = self.embedding.weight
        if "lstm_head" in self._modules:
            h = self.lstm_head(h)
        out: Tensor = self.mlp_head(h)
        return out


class Lstm(nn.Module):
    """The parameters of `nn.LSTM(d, m, num_layers=2, bidirectional=True)`, which itself breaks compiled graphs."""

    def __init__(self, d: int, m: int, **kind: Any):
        super().__init__()
        plain = nn.LSTM(d, m, num_layers=2, bidirectional=True, **kind)
        self.m = m
        for name, p in plain.named_parameters():
            self.register_parameter(name, p)

    def forward(self, x: Tensor) -> Tensor:  # (n, d) -> (n, 2m)
        zero = x.new_zeros(4, 1, self.m)
        weights: list[Tensor] = list(self.parameters())
        return torch.lstm(x[:, None], (zero, zero), weights, True, 2, 0.0, self.training, True, False)[0][:, 0]


class Templated(Virtual):
    """h laid out around x and y; `y` is the id of the token that y begins with, -1 where token types tell."""

    def __init__(self, frame: Frame, prompt: PromptEncoder, sizes: tuple[int, int, int], y: int):
        super().__init__(frame, sum(sizes))
        self.prompt, self.sizes, self.y = prompt, sizes, y

    def tokens(self) -> Tensor:
        out: Tensor = self.prompt()
        return out

    def places(self, given: dict[str, Any], mask: Tensor) -> Tensor | None:
        _, middle, end = self.sizes
        if not (middle or end):
            return None
        real, t = mask != 0, mask.shape[1]
        index = torch.arange(t, device=mask.device)
        first, last = (~real).long().cumprod(1).sum(1), (real * (index + 1)).amax(1)
        kinds = given.get("token_type_ids")
        if self.y >= 0:
            begins = self.begins(given, real)
        else:
            begins = torch.zeros_like(real) if kinds is None else (kinds.expand_as(real) == 1) & real
        y = torch.where(begins, index, t).amin(1).minimum(last)
        return torch.stack([first, y, last], 1).repeat_interleave(torch.tensor(self.sizes, device=mask.device), 1)

    def begins(self, given: dict[str, Any], real: Tensor) -> Tensor:
        if given.get("input_ids") is None:
            raise InputError(Problem("inputs_embeds do not tell where y begins", "method.y", fix="give input_ids"))
        found: Tensor = (given["input_ids"] == self.y) & real
        if not torch.compiler.is_compiling() and not bool(found.any(1).all()):
            without = (~found.any(1)).nonzero().flatten().tolist()
            raise InputError(
                Problem(f"rows without the token {self.y} that y begins with", "input_ids", got=f"{without}")
            )
        return found


class Fill(Adapter):
    """On an embedding: the k-th token `pseudo` of a row is h_k."""

    def __init__(self, prompt: PromptEncoder, pseudo: int):
        super().__init__()
        self.prompt, self.pseudo = prompt, pseudo

    def forward(self, base: Any, ids: Tensor) -> Tensor:
        h, hit = self.prompt(), ids == self.pseudo
        n = len(h)
        if not torch.compiler.is_compiling():
            counts = hit.sum(-1)
            if bool(((counts != 0) & (counts != n)).any()):
                want, got = f"none or {n} of the token {self.pseudo} in each row", f"{sorted(set(counts.tolist()))}"
                raise InputError(Problem("pseudo tokens do not fit the template", "input_ids", want, got))
        y: Tensor = base(ids)
        k = (hit.long().cumsum(-1) - 1).clamp(0, n - 1)
        return torch.where(hit[..., None], h.to(y.dtype)[k], y)

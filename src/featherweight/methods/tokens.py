"""Trainable tokens: a few rows of the embedding train, the rest of it stays frozen.

    E'[t] = δ_t   for the chosen tokens t        E'[t] = E[t]   for all others

δ (k, H) starts at the rows it replaces, so the start is the identity; k H parameters. They are replacements, not
differences, so that new tokens mean the same on a base whose new rows were drawn anew. Where the output head is tied to
the embedding its rows follow, with the same δ: z_t = δ_t · h. For new tokens: `tokenizer.add_tokens(...)`,
`model.resize_token_embeddings(len(tokenizer))`, then attach. Merge: the rows are written into E.
Source: PEFT's TRAINABLE_TOKENS (Hugging Face 2025); new words by their embeddings alone: Gal et al. 2022,
"An image is worth one word", arXiv:2208.01618.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.base import read, view
from featherweight.core.encoded import identity
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site

Shared = tuple[tuple[int, ...], dict[int, nn.Parameter]]  # the tokens' numbers, the tensor -> its one set of rows


@dataclass(frozen=True, repr=False)
class Tokens(Method):
    """`tokens`: numbers, or texts that are one token each of the tokenizer at `model.tokenizer`."""

    tokens: Sequence[str | int] = ()

    paper: ClassVar[str] = "Gal et al. 2022, arXiv:2208.01618 (one word); PEFT's trainable tokens"
    place: ClassVar[str] = "rows of the embedding, and of a head tied to it"
    lr: ClassVar[float] = 5e-3
    near: ClassVar[float] = 1e-6  # the tied head's few columns are a matrix product of their own
    lr_source: ClassVar[str] = "Gal et al. 2022: base rate 5e-3 (unverified)"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        tables = anatomy(model).sites("embedding")
        if not tables:
            raise InputError(
                Problem(
                    "the model has no embedding", got=type(model).__name__, fix="it takes a model that reads tokens"
                )
            )
        tied = {id(identity(s.module, "weight")) for s in tables}
        return [Site(p, m) for p, m in base_modules(model) if id(identity(m, "weight")) in tied]

    def shared(self, model: nn.Module) -> Shared:
        return numbers(self.tokens, model), {}

    def build(self, site: Site, shared: Shared) -> Adapter:
        ids, rows = shared
        weight, own = read(site.module, "weight"), id(identity(site.module, "weight"))
        beyond = [i for i in ids if not 0 <= i < len(weight)]
        if beyond:
            fix = "give the embedding room first: model.resize_token_embeddings(len(tokenizer))"
            raise InputError(
                Problem("no such row", f"{site}: method.tokens", f"0 to {len(weight) - 1}", str(beyond), fix)
            )
        at = torch.tensor(ids).to(weight.device)
        if own not in rows:
            rows[own] = nn.Parameter(weight.detach()[at].to(master(weight.dtype)))
        return (TokenRows if site.kind == "embedding" else TokenColumns)(rows[own], at)

    def recorded(self, adapters: Adapted) -> Self:
        """With numbers: a file holds for every tokenizer."""
        made = next(a for a in adapters.values() if isinstance(a, TokenRows))
        return replace(self, tokens=tuple(made.ids.tolist()))


def numbers(tokens: Sequence[str | int], model: nn.Module) -> tuple[int, ...]:
    """The tokens' numbers. Raises InputError over all that are no single token, or stand twice."""
    if isinstance(tokens, str) or not tokens:
        raise InputError(Problem("no tokens", "method.tokens", 'a list, such as ("<a>", "<b>")', repr(tokens)))
    tokenizer: Any = getattr(model, "tokenizer", None)
    problems, found = [], []
    for token in tokens:
        if isinstance(token, str) and tokenizer is None:
            fix = "set model.tokenizer, or give the token's number"
            problems.append(Problem("a token by its text needs a tokenizer", "method.tokens", got=repr(token), fix=fix))
        elif isinstance(token, str) and token not in tokenizer.get_vocab():
            fix = "add it: tokenizer.add_tokens([...]), then model.resize_token_embeddings(len(tokenizer))"
            problems.append(Problem("not one token of the tokenizer", "method.tokens", got=repr(token), fix=fix))
        else:
            found.append(tokenizer.get_vocab()[token] if isinstance(token, str) else int(token))
    twice = sorted({i for i in found if found.count(i) > 1})
    problems += [Problem("a token stands twice", "method.tokens", got=str(i)) for i in twice]
    raise_all(problems)
    return tuple(found)


class TokenRows(Adapter):
    """On an embedding: trainable_tokens_delta (k, H), the rows that replace those of the tokens `ids` (k,)."""

    ids: Tensor

    def __init__(self, rows: nn.Parameter, ids: Tensor):
        super().__init__()
        self.trainable_tokens_delta = rows
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """Look the chosen tokens up in the small table and all others in the large one, which is never copied."""
        y = base(x)
        same = x.unsqueeze(-1) == self.ids  # (..., k)
        table: Any = view(
            base.host, {"weight": self.trainable_tokens_delta.to(y.dtype)}
        )  # scaled embeddings scale these too
        vars(table)["padding_idx"] = None
        rows = type(table).forward(table, same.int().argmax(-1))  # (..., H)
        return torch.where(same.any(-1, keepdim=True), rows, y)

    def merge(self, W: Any) -> dict[str, Tensor]:
        E = W["weight"]
        return {"weight": E.index_copy(0, self.ids, self.trainable_tokens_delta.to(E.dtype))}

    def added(self) -> int:
        return 0


class TokenColumns(TokenRows):
    """On a head tied to the embedding: the scores of the tokens are those of their rows."""

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        bias = base["bias"] if getattr(base.host, "bias", None) is not None else None
        rows = self.trainable_tokens_delta.to(y.dtype)
        return y.index_copy(-1, self.ids, F.linear(x, rows, None if bias is None else bias[self.ids]).to(y.dtype))

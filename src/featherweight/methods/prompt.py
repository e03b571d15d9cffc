"""Prompt tuning: learned embeddings in front of the input.

    h = f([P; e(x)])        P (n, d) trains, e and f are frozen

P stands beside the first real token; in an encoder-decoder in front of the encoder's input, and with `decoder` of the
decoder's too (PEFT stores tokens for it that it never uses). n·d parameters, with `decoder` 2 n·d. Outputs keep the
input's length: its first word is not asked of P.
Init: `vocabulary` copies the embeddings of n tokens drawn among the first 5,000 (vocabularies are sorted by frequency),
`text` those of a text, repeated or cut to n; `random` draws N(0, s²) with s the deviation of the model's own
embeddings, and `normal` N(0, 1), as PEFT does: far outside of where embeddings lie in most models. Not the identity at
the start, and never merged.
Source: Lester et al. 2021, "The power of scale for parameter-efficient prompt tuning", arXiv:2104.08691.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.base import read
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Method
from featherweight.core.order import Frame
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.virtual import Virtual, frame, seats
from featherweight.methods.starts import sparing

INITS = ("vocabulary", "text", "random", "normal")
COMMON = 5000


@dataclass(frozen=True, repr=False)
class Prompt(Method):
    """`tokens` learned embeddings in front of the input. `init="text"` starts from the embeddings of `text`."""

    tokens: int = 20
    init: str = "vocabulary"
    text: str = ""
    decoder: bool = False

    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    place: ClassVar[str] = "in front of the input's embeddings"
    mergeable: ClassVar[bool] = False
    identity: ClassVar[bool] = False
    lr: ClassVar[float] = 5e-3
    lr_source: ClassVar[str] = "tried on MiniLM with AdamW; Lester et al. 2021: 0.3 on T5, whose embeddings are larger"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        raise_all(self.problems(model))
        found = seats(model)
        if self.decoder and len(found) < 2:
            raise InputError(Problem("no encoder beside the decoder", "method.decoder", got=type(model).__name__))
        return found

    def problems(self, model: nn.Module) -> list[Problem]:
        wrong = []
        if self.tokens < 1:
            wrong.append(Problem("no tokens", "method.tokens", "at least 1", str(self.tokens)))
        if self.init not in INITS:
            wrong.append(Problem("unknown init", "method.init", " or ".join(map(repr, INITS)), repr(self.init)))
        if self.text and self.init != "text":
            wrong.append(Problem("a text that no init reads", "method.text", got=repr(self.text), fix='init="text"'))
        if self.init == "text" and not self.text:
            wrong.append(Problem("no text to start from", "method.text", fix='text="Classify the sentiment:"'))
        if self.init == "text" and not hasattr(model, "tokenizer") and not sparing():
            fix = "load the model with fw.load_base, or set model.tokenizer"
            wrong.append(Problem("a text needs the model's tokenizer", "method.init", fix=fix))
        return wrong

    def shared(self, model: nn.Module) -> nn.Module:
        return model

    def build(self, site: Site, shared: nn.Module) -> Adapter:
        if site.role == "across" and not self.decoder:
            return Virtual(frame(site), across=self.tokens)
        return Soft(frame(site), start(shared, site, self), across=self.tokens * (site.role == "across"))


class Soft(Virtual):
    """prompt_embeddings (n, d)."""

    def __init__(self, frame: Frame, start: Tensor, across: int = 0):
        super().__init__(frame, len(start), across)
        self.prompt_embeddings = nn.Parameter(start)

    def tokens(self) -> Tensor:
        return self.prompt_embeddings


def start(model: nn.Module, seat: Site, method: Prompt) -> Tensor:
    """The first (n, d) prompt."""
    host: Any = seat.module
    table = host.get_input_embeddings()
    weight = read(table, "weight").detach()
    method = replace(method, init="random", text="") if sparing() else method
    size, dtype = (method.tokens, weight.shape[1]), master(weight.dtype)
    if method.init in ("random", "normal"):
        scale = weight.float().std().to(dtype) if method.init == "random" else 1.0
        return torch.randn(size, dtype=dtype, device=weight.device) * scale
    if method.init == "text":
        ids = text_ids(model, method.text)
        drawn = torch.tensor((ids * -(-method.tokens // len(ids)))[: method.tokens], device=weight.device)
    else:
        drawn = torch.randint(min(COMMON, len(weight)), size[:1], device=weight.device)
    return table(drawn).detach().to(dtype).clone()


def text_ids(model: Any, text: str) -> list[int]:
    """Token ids of a text, without the tokenizer's special tokens."""
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise InputError(Problem("a text without tokens", "method.text", got=repr(text)))
    return ids

"""P-tuning: virtual tokens anywhere in a template, made by a small encoder that is dropped afterwards.

    {h_0 … h_i, e(x), h_i+1 … h_j, e(y), h_j+1 … h_k}       h = MLP(LSTM(E))    or    h = MLP(E)

E (n, d) ~ N(0, 1); LSTM of 2 layers, both directions, m = d/2 wide each; MLP 2m → 2m → d with ReLU (without the LSTM
d → m → d, m = d). Count: n d + LSTM + MLP, for d = 768 and n = 9 8,278,272; n d = 6,912 are needed afterwards: h itself
is what is saved for use, while checkpoints of a run keep the encoder. Not the identity at the start, and never merged.

x is the input; y begins with the second text of a pair, by its token types (a row without one: at the end), or with the
token `y`, which every row must have ("mask": the tokenizer's). Or the rows say all of it: with `pseudo`, h_0, h_1, ...
replace the embeddings of that token, wherever it stands.
Source: Liu et al. 2021, "GPT understands, too", arXiv:2103.10385.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.base import read
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.virtual import Virtual, frame, seats
from featherweight.methods.templated import Fill, PromptEncoder, Templated

ENCODERS = ("lstm", "mlp", "none")
TEMPLATE = re.compile(r"\s*(P*)\s*x\s*(P*)\s*y?\s*(P*)\s*")


@dataclass(frozen=True, repr=False)
class PTuning(Method):
    """`template`: how many tokens stand before x, before y and at the end, or drawn as "PPP x PPP y PPP".

    `encoder="none"` trains h itself. `hidden`: m.
    """

    template: tuple[int, ...] | str = (3, 3, 3)
    encoder: str = "lstm"
    hidden: int | None = None
    y: int | str = "pair"
    pseudo: int | None = None

    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2103.10385"
    place: ClassVar[str] = "among the input's embeddings, anywhere"
    mergeable: ClassVar[bool] = False
    identity: ClassVar[bool] = False
    lr: ClassVar[float] = 1e-3
    lr_source: ClassVar[str] = "our choice, not tuned; Liu et al. 2021: 1e-5"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens before x, before y, at the end. Raises InputError for anything else."""
        drawn = TEMPLATE.fullmatch(self.template) if isinstance(self.template, str) else None
        given = [len(group) for group in drawn.groups()] if drawn else list(self.template)
        whole = all(isinstance(n, int) and n >= 0 for n in given)
        if not (whole and 1 <= len(given) <= 3 and sum(given)):  # type: ignore[arg-type]
            want = '1 to 3 counts as (3, 3, 3), or "PPP x PPP y PPP"'
            raise InputError(Problem("not a template", "method.template", want, repr(self.template)))
        before, middle, end = [*given, 0, 0][:3]
        return int(before), int(middle), int(end)

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        raise_all(self.problems(model))
        if self.pseudo is not None:
            return anatomy(model).sites("embedding")
        return seats(model)

    def problems(self, model: nn.Module) -> list[Problem]:
        wrong = []
        _, middle, end = self.sizes
        if self.encoder not in ENCODERS:
            wrong.append(Problem("unknown encoder", "method.encoder", " or ".join(ENCODERS), repr(self.encoder)))
        if self.hidden is not None and self.hidden < 1:
            wrong.append(Problem("out of range", "method.hidden", "at least 1", str(self.hidden)))
        if isinstance(self.y, str) and self.y not in ("pair", "mask"):
            wrong.append(Problem("not where y begins", "method.y", '"pair", "mask" or a token id', repr(self.y)))
        if self.y == "mask" and getattr(getattr(model, "tokenizer", None), "mask_token_id", None) is None:
            fix = "give the mask token's id: y=103"
            wrong.append(Problem("the model has no tokenizer with a mask", "method.y", got='"mask"', fix=fix))
        if (end or (middle and self.y == "pair")) and self.pseudo is None and decodes(model):
            what = "where a decoder's row ends moves as it writes, and no token type says where its answer begins"
            fix = "template=(i, j) with y=ID of the token that begins the answer, or pseudo=ID of tokens in the rows"
            wrong.append(Problem(what, "method.template", got=repr(self.template), fix=fix))
        return wrong

    def shared(self, model: nn.Module) -> tuple[nn.Module, int]:
        """What makes h, and the token id of y (-1: by token types)."""
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        weight = read(table, "weight")
        kind: dict[str, Any] = {"dtype": master(weight.dtype), "device": weight.device}
        made = PromptEncoder(sum(self.sizes), int(weight.shape[1]), self.encoder, self.hidden, kind)
        mask = getattr(getattr(model, "tokenizer", None), "mask_token_id", None)
        return made, self.y if isinstance(self.y, int) else mask if self.y == "mask" and mask is not None else -1

    def build(self, site: Site, shared: tuple[Any, int]) -> Adapter:
        made, y = shared
        if self.pseudo is not None:
            return Fill(made, self.pseudo)
        if site.role == "across":
            return Virtual(frame(site), across=sum(self.sizes))
        return Templated(frame(site), made, self.sizes, y)

    def export(self, adapters: Adapted) -> dict[str, Tensor] | None:
        """h, once."""
        if self.encoder == "none":
            return None
        path, first = next((p, a) for p, a in adapters.items() if isinstance(a, Templated | Fill))
        with torch.no_grad():
            return {f"{path}.prompt.prompt_embeddings".lstrip("."): first.prompt()}

    def recorded(self, adapters: Adapted) -> Self:
        y = next((a.y for a in adapters.values() if isinstance(a, Templated) and self.y == "mask"), self.y)
        return replace(self, encoder="none", hidden=None, y=y)


def decodes(model: nn.Module) -> bool:
    """Whether the model goes on with its input, row by row, from left to right."""
    return frame(seats(model)[0]).causal and anatomy(model).generates

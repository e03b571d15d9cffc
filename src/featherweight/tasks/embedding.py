"""Embeddings of texts by a contrastive loss: every other row's passages are negatives, and so are the row's own.

    e(x)  = Σ_i m_i h_i / Σ_i m_i, scaled to length 1                       mean of the last states, m the mask
    loss  = - log( exp(e(q)·e(p⁺)/τ) / Σ_p exp(e(q)·e(p)/τ) )               p: all passages of the batch, τ: temperature

Sources: van den Oord et al. 2018 (InfoNCE), arXiv:1807.03748; Henderson et al. 2017 (negatives from the batch),
arXiv:1705.00652; Reimers and Gurevych 2019 (mean pooling), arXiv:1908.10084. `chunk` is the gradient cache of Gao et
al. 2021, arXiv:2101.06983: all texts of a batch meet in the loss while the activations of only a few are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self
from zlib import crc32

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Embedding(Task):
    """Rows of a text and its passages (the positive one, then hard negatives), for an encoder without a head; a unit is
    a row. What belongs to a text is no negative of it: the positives of all rows with the same text, or, where rows
    have labels, with the same label. A prediction is the text's embedding and its passages'; scores rank what belongs
    to each text among all passages of the split, the text itself left out.

    `temperature` is τ; `chunk` embeds so many texts at a time and recomputes them for the gradient (0: all at once):
    the memory of a small batch with the negatives of a large one, for one more forward pass."""

    temperature: float = 0.05
    chunk: int = 0

    auto: ClassVar[str] = "AutoModel"
    shapes: ClassVar[tuple[str, ...]] = ("contrast",)
    best: ClassVar[tuple[str, bool]] = ("mrr", True)
    whole: ClassVar[bool] = True

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("no positive passage", e.where, "a text and a passage") for e in examples if not e.choices]

    def fit(self, examples: Sequence[Example]) -> Self:
        wrong = [Problem("no such temperature", "task.temperature", "above 0", str(self.temperature))]
        raise_all(wrong if self.temperature <= 0 else [])
        raise_all([Problem("no such chunk", "task.chunk", "0 or more", str(self.chunk))] if self.chunk < 0 else [])
        raise_all(self.check(examples))
        return self

    def companions(self, model: Any) -> dict[str, Any]:
        """What sentence-transformers reads: the trunk, the mean of its tokens, length 1."""
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                   for i, (path, kind) in enumerate(kinds.items())]  # fmt: skip
        pooling = {"word_embedding_dimension": int(model.config.hidden_size), "pooling_mode_mean_tokens": True}
        return {"modules.json": modules, "1_Pooling/config.json": pooling, "2_Normalize/config.json": {}}

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all
        from featherweight.data.types import Example

        raise_all(self.check(examples))
        passages = [Example(e.where, c) for e in examples for c in e.choices]
        found = iter(encode_text_all(passages, tokenizer, length))
        made = []
        for e, row in zip(examples, encode_text_all(examples, tokenizer, length), strict=True):
            own = [next(found) for _ in e.choices]
            cut = row.truncated + sum(p.truncated for p in own)
            made.append(replace(row, labels=number(e), truncated=cut, choices=[p.input_ids for p in own]))
        return made

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        return encode_text_all(examples, tokenizer, length)

    def largest(self, length: int) -> Encoded:
        """With a passage as long as the text."""
        return replace(super().largest(length), choices=[[0] * length])

    def embed(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """(texts, d) of length 1, in fp32 at least."""
        import torch
        from torch.utils.checkpoint import checkpoint

        if not self.chunk or len(ids) <= self.chunk:
            return embedded(model, ids, mask)
        pieces = zip(ids.split(self.chunk), mask.split(self.chunk), strict=True)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(embedded, model, *piece, use_reentrant=False) for piece in pieces])
        return torch.cat([embedded(model, *piece) for piece in pieces])

    def passages(self, model: nn.Module, choices: Tensor) -> Tensor:
        """(passages, d) of all that are there in `choices` (batch, most, tokens), row by row."""
        ids = choices[(choices >= 0).any(2)]
        return self.embed(model, ids.clamp_min(0), (ids >= 0).long())

    def contrast(self, queries: Tensor, passages: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over rows."""
        from torch.nn.functional import cross_entropy

        first, belongs = related(batch)
        scores = (queries @ passages.T / self.temperature).masked_fill(belongs, float("-inf"))
        return cross_entropy(scores, first, reduction="sum")

    def pair(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of the texts and of all their passages."""
        texts = self.embed(model, batch["input_ids"], batch["attention_mask"])
        return texts, self.passages(model, batch["choices"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        choices = batch["choices"]
        return self.contrast(*self.pair(model, batch), batch), choices.new_tensor(len(choices))

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        texts, passages = self.pair(model, batch)
        choices = batch["choices"]
        counts = (choices >= 0).any(2).sum(1).tolist()
        own = passages.cpu().split(counts)
        made = [(text.numpy(), p.numpy()) for text, p in zip(texts.cpu(), own, strict=True)]
        return self.contrast(texts, passages, batch), choices.new_tensor(len(choices)), made

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        texts = self.embed(model, batch["input_ids"], batch["attention_mask"])
        return [(text.numpy(), ()) for text in texts.cpu()]

    def reference(self, example: Example) -> Any:
        return example if example.choices else None

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        import numpy as np

        from featherweight.tasks.retrieval import groups, retrieval

        corpus: dict[str, Any] = {}
        for (_, own), e in zip(predictions, references, strict=True):
            corpus |= dict(zip(e.choices, own, strict=True))
        place = {text: i for i, text in enumerate(corpus)}
        keys = [key(e) for e in references]
        of = groups(keys, [[place[e.choices[0]]] for e in references])
        texts = np.stack([text for text, _ in predictions])
        own = [place.get(e.text) for e in references]
        return retrieval(texts, np.stack(list(corpus.values())), [of[k] for k in keys], own)

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"embedding": prediction[0].tolist()}


def embedded(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Means of the last states, scaled to length 1; pads at the end of all rows are left out."""
    import torch
    from torch.nn.functional import normalize

    from featherweight.interop.pooling import mean

    wide = int(mask.sum(1).max())
    if bool(mask[:, :wide].sum() == mask.sum()):
        ids, mask = ids[:, :wide], mask[:, :wide]
    out = model(input_ids=ids, attention_mask=mask)
    states, pooled = (getattr(out, name, None) for name in ("last_hidden_state", "pooler_output"))
    if states is None:
        fix = "load it for this task: fw.load_base(path, fw.Embedding())"
        raise InputError(Problem("the model gives no states to embed by", "model", "an encoder without a head",
                                 type(model).__name__, fix))  # fmt: skip
    vectors = normalize(mean(states.to(torch.promote_types(states.dtype, torch.float32)), mask), dim=-1)
    if pooled is not None and pooled.requires_grad:
        vectors = vectors + 0 * pooled.sum()  # nobody reads the pooler; methods that train everything train it too
    return vectors


def related(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where each row's positive stands among all passages (batch), and which others are none of its negatives
    (batch, passages): the positives of rows of its label or its text, and the text itself."""
    import torch
    from torch.nn.functional import pad

    choices, label = batch["choices"], batch["labels"]
    texts = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    wide = max(texts.shape[1], choices.shape[2])
    texts, choices = (pad(ids, (0, wide - ids.shape[-1]), value=-100) for ids in (texts, choices))
    there = (choices >= 0).any(2)  # (batch, most)
    ids, first = choices[there], there.sum(1).cumsum(0) - there.sum(1)
    kin = same(texts, texts) | ((label[:, None] == label) & (label >= 0))
    belongs = (kin.float() @ same(ids[first], ids).float()).bool() | same(texts, ids)
    belongs[torch.arange(len(first), device=first.device), first] = False
    return first, belongs


def same(a: Tensor, b: Tensor) -> Tensor:
    """(n, m): which rows of token ids of `a` (n, w) and `b` (m, w) are equal."""
    equal: Tensor = (a[:, None] == b[None]).all(2)
    return equal


def key(example: Example) -> tuple[str, str]:
    """What rows have in common whose positives belong to each other."""
    return ("text", example.text) if example.label is None else ("label", str(example.label))


def number(example: Example) -> int:
    """A row's label as a number, the same in every process; -1 without one."""
    return -1 if example.label is None else crc32(str(example.label).encode())

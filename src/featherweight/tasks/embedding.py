"""Embeddings of texts by a contrastive loss: every other row's passages are negatives, and so are the row's own.

    e(x)  = Σ_i m_i h_i / Σ_i m_i, scaled to length 1                       mean of the last states, m the mask
    loss  = - log( exp(e(q)·e(p⁺)/τ) / Σ_p exp(e(q)·e(p)/τ) )               p: all passages of the batch, τ: temperature

Sources: van den Oord et al. 2018 (InfoNCE), arXiv:1807.03748; Henderson et al. 2017 (negatives from the batch),
arXiv:1705.00652; Reimers and Gurevych 2019 (mean pooling), arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks import retrieval
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Embedding(Task):
    """Rows of a text and its passages (the positive one, then hard negatives), for an encoder without a head; a unit is
    a row. A passage that equals a row's positive token for token is no negative of it. A prediction is the text's
    embedding and its passages'; scores rank each text's positive among all passages of the split."""

    temperature: float = 0.05

    auto: ClassVar[str] = "AutoModel"
    shapes: ClassVar[tuple[str, ...]] = ("contrast",)
    best: ClassVar[tuple[str, bool]] = ("mrr", True)
    whole: ClassVar[bool] = True

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("no positive passage", e.where, "a text and a passage") for e in examples if not e.choices]

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
            made.append(replace(row, labels=0, truncated=cut, choices=[p.input_ids for p in own]))
        return made

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        return encode_text_all(examples, tokenizer, length)

    def embed(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """(texts, d) of length 1, in fp32 at least."""
        import torch
        from torch.nn.functional import normalize

        from featherweight.interop.pooling import mean

        states = getattr(model(input_ids=ids, attention_mask=mask), "last_hidden_state", None)
        if states is None:
            fix = "load it for this task: fw.load_base(path, fw.Embedding())"
            raise InputError(Problem("the model gives no states to embed by", "model", "an encoder without a head",
                                     type(model).__name__, fix))  # fmt: skip
        return normalize(mean(states.to(torch.promote_types(states.dtype, torch.float32)), mask), dim=-1)

    def passages(self, model: nn.Module, choices: Tensor) -> Tensor:
        """(passages, d) of all that are there in `choices` (batch, most, tokens), row by row."""
        ids = choices[(choices >= 0).any(2)]
        return self.embed(model, ids.clamp_min(0), (ids >= 0).long())

    def contrast(self, queries: Tensor, passages: Tensor, choices: Tensor) -> Tensor:
        """The loss summed over rows."""
        from torch.nn.functional import cross_entropy

        there = (choices >= 0).any(2)  # (batch, most)
        ids = choices[there]
        first = there.sum(1).cumsum(0) - there.sum(1)  # where each row's positive stands
        same = (ids[first][:, None] == ids[None]).all(2)  # (batch, passages)
        same[first.new_tensor(range(len(first))), first] = False
        scores = (queries @ passages.T / self.temperature).masked_fill(same, float("-inf"))
        return cross_entropy(scores, first, reduction="sum")

    def pair(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of the texts and of all their passages."""
        texts = self.embed(model, batch["input_ids"], batch["attention_mask"])
        return texts, self.passages(model, batch["choices"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        choices = batch["choices"]
        return self.contrast(*self.pair(model, batch), choices), choices.new_tensor(len(choices))

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        texts, passages = self.pair(model, batch)
        choices = batch["choices"]
        own = iter(passages.tolist())
        counts = (choices >= 0).any(2).sum(1).tolist()
        made = [(text, [next(own) for _ in range(n)]) for text, n in zip(texts.tolist(), counts, strict=True)]
        return self.contrast(texts, passages, choices), choices.new_tensor(len(choices)), made

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return [(text, []) for text in self.embed(model, batch["input_ids"], batch["attention_mask"]).tolist()]

    def reference(self, example: Example) -> Any:
        return example.choices or None

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        import torch

        corpus: dict[str, Any] = {}
        for (_, own), texts in zip(predictions, references, strict=True):
            corpus |= dict(zip(texts, own, strict=True))
        scores = torch.tensor([text for text, _ in predictions]) @ torch.tensor(list(corpus.values())).T
        names = list(corpus)
        order = scores.argsort(dim=1, descending=True, stable=True).tolist()
        ranked = [[names[i] == texts[0] for i in row] for row, texts in zip(order, references, strict=True)]
        return {
            "hit_rate@1": retrieval.hit_rate(ranked, 1),
            "hit_rate@10": retrieval.hit_rate(ranked, 10),
            "mrr": retrieval.reciprocal_rank(ranked),
            "ndcg@10": retrieval.ndcg(ranked, 10),
        }

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"embedding": prediction[0]}

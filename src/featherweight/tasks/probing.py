"""Knowledge probing: does the model put the right word into the hole of a sentence about a fact (LAMA)?

    P@k = share of facts whose object is among the k likeliest tokens of the whole vocabulary
    MRR = mean of 1 / rank of the object

Only objects of one token can be asked for, as in LAMA; others are left out of loss and scores and counted (`left_out`).
With [P] in the template and P-tuning on the embedding, the words around the fact are learned instead of written.
Sources: Petroni et al. 2019, arXiv:1909.01066; Liu et al. 2021, "GPT understands, too", arXiv:2103.10385.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example

SHOWN = 10


@dataclass(frozen=True, repr=False)
class CausalProbing(Task):
    """Facts asked of a decoder: a subject, an object, and a template with [X] and, behind it, [Y]; what follows [Y] is
    not read. A unit is a fact with an object of one token. A prediction: the likeliest tokens, their probabilities, and
    the rank of the object where it is known.

    `templates` are by the name of a row's relation, `template` is for all others; without them a row has its own.
    `pseudo`: the id of the token that [P] stands for, the same as P-tuning's `pseudo`."""

    template: str = ""
    templates: dict[str, str] = field(default_factory=dict, hash=False)
    pseudo: int | None = None

    auto: ClassVar[str] = "AutoModelForCausalLM"
    shapes: ClassVar[tuple[str, ...]] = ("fact",)
    best: ClassVar[tuple[str, bool]] = ("p@1", True)
    trains: ClassVar[str] = "an object that the tokenizer has as one token"

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all(Problem("no object in a training row", e.where, "an object") for e in examples if e.label is None)
        raise_all(self.check(examples))
        return self

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        from featherweight.data.probes import problems

        decodes, virtual = self.auto == CausalProbing.auto, self.pseudo is not None
        return [p for e in examples for p in problems(e, self.words(e), self.templates, decodes, virtual)]

    def words(self, example: Example) -> str:
        from featherweight.data.probes import template_of

        return template_of(example, self.template, self.templates)

    def hole(self, tokenizer: Any) -> int | None:
        """The token that the object is put in place of; None: it comes next."""
        return None

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.probes import Probe

        raise_all(self.check(examples))
        probe = Probe(tokenizer, self.hole(tokenizer), self.pseudo)
        made = [probe.encoded(e, self.words(e), length) for e in examples]
        raise_all(m for m in made if isinstance(m, Problem))
        return [m for m in made if not isinstance(m, Problem)]

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([replace(e, label=None) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        from featherweight.data.types import UNTRAINED

        return replace(super().largest(length), labels=[UNTRAINED] * (length - 1) + [0], more={"hole": [length - 1]})

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.heads import inputs
        from featherweight.tasks.token_loss import IGNORED, token_loss

        labels = batch["labels"]
        return token_loss(model, inputs(batch), labels), (labels != IGNORED).sum()

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, vocabulary) in fp32, at the hole."""
        import torch

        from featherweight.tasks.heads import inputs

        made: Tensor = model(**inputs(batch)).logits[:, -batch["input_ids"].shape[1] :]
        return made[torch.arange(len(made), device=made.device), batch["hole"][:, 0]].float()

    def read(self, logits: Tensor, tokenizer: Any, targets: Tensor | None = None) -> list[Any]:
        """The `SHOWN` likeliest tokens of each row with their probabilities; the rank of the target from 1, None where
        there is none."""
        top = logits.softmax(1).topk(min(SHOWN, logits.shape[1]), dim=1)
        words = [[tokenizer.decode([i]).strip() for i in row] for row in top.indices.tolist()]
        ranks: list[int | None] = [None] * len(words)
        if targets is not None:
            own = logits.gather(1, targets.clamp_min(0)[:, None])
            found = (logits > own).sum(1) + 1
            ranks = [r if t >= 0 else None for r, t in zip(found.tolist(), targets.tolist(), strict=True)]
        return list(zip(words, top.values.tolist(), ranks, strict=True))

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.read(self.logits(model, batch), tokenizer)

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        from torch.nn.functional import cross_entropy

        logits = self.logits(model, batch)
        targets = batch["labels"].gather(1, batch["hole"])[:, 0]
        loss = cross_entropy(logits, targets, reduction="sum")
        return loss, (targets >= 0).sum(), self.read(logits, tokenizer, targets)

    def reference(self, example: Example) -> Any:
        return example.label

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        ranks = [rank for _, _, rank in predictions if rank is not None]
        if not ranks:
            want = "objects that the tokenizer has as one token"
            raise InputError(Problem("no fact can be asked for", "data", want, f"none of {len(predictions)}"))
        shares = {f"p@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 10)}
        mean = sum(1 / rank for rank in ranks) / len(ranks)
        return {**shares, "mrr": mean, "left_out": len(predictions) - len(ranks)}

    def answer(self, prediction: Any) -> dict[str, Any]:
        words, probabilities, _ = prediction
        return {"text": words[0], "probability": probabilities[0], "tokens": words, "probabilities": probabilities}


@dataclass(frozen=True, repr=False)
class Probing(CausalProbing):
    """Facts asked of a masked language model: as `CausalProbing`, with the mask token for [Y], which may stand
    anywhere."""

    auto: ClassVar[str] = "AutoModelForMaskedLM"

    def hole(self, tokenizer: Any) -> int | None:
        if getattr(tokenizer, "mask_token_id", None) is None:
            fix = "CausalProbing() asks decoders"
            raise InputError(Problem("the tokenizer has no mask token", "tokenizer", "that of a masked LM", fix=fix))
        return int(tokenizer.mask_token_id)

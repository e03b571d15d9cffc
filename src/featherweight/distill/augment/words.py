"""What may stand in place of a word: K words that a masked LM would put there, or its K nearest in the embedding table.

    in context   top K of p(· | the text with the word hidden)         words of one token
    nearest      top K of cos(e, e_v) over the words v of one token     words of several: e is the mean of their tokens'

A word is a run of letters, with apostrophes inside. Only what the tokenizer writes as one token in a text is a
candidate: pieces of words, numbers and special tokens never are.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks.modes import evaluating, inner

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Place:
    """A word of a text: where it stands, and its tokens in the encoded text."""

    start: int
    end: int
    tokens: tuple[int, ...]


@dataclass(eq=False)
class Lexicon:
    """A masked LM and the words it knows. `context` False takes nearest words everywhere: an encoder will do."""

    model: Any
    tokenizer: Any
    count: int = 15
    context: bool = True
    batch: int = 64

    def __post_init__(self) -> None:
        raise_all(unfit(self.model, self.tokenizer, self.context))
        if self.count < 1:
            raise InputError(Problem("no candidates", "words", "at least 1", str(self.count)))

    @cached_property
    def known(self) -> dict[int, str]:
        """Token -> word, for every token that is a word by itself."""
        tokenizer, special = self.tokenizer, set(self.tokenizer.all_special_ids)
        ids = [i for i in range(len(tokenizer)) if i not in special]
        texts = [t.strip() for t in tokenizer.batch_decode([[i] for i in ids])]
        plain = [(i, t) for i, t in zip(ids, texts, strict=True) if WORD.fullmatch(t)]
        head = tokenizer("a", add_special_tokens=False)["input_ids"]
        again = tokenizer([f"a {t}" for _, t in plain], add_special_tokens=False)["input_ids"] if plain else []
        return {i: t for (i, t), back in zip(plain, again, strict=True) if back == [*head, i]}

    @cached_property
    def numbers(self) -> Tensor:
        return torch.tensor(sorted(self.known))

    @cached_property
    def table(self) -> Tensor:
        """(words, width): embeddings of length 1."""
        return normalize(self.embedding(self.numbers), dim=-1)

    def embedding(self, ids: Tensor) -> Tensor:
        layer: Any = inner(self.model).get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            found: Tensor = layer(ids.to(layer.weight.device)).float().cpu()
        return found

    def places(self, text: str) -> tuple[list[int], list[Place]]:
        """The encoded text, and its words."""
        made = self.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=self.most)
        ids, spans = list(made["input_ids"]), made["offset_mapping"]
        found = []
        for match in WORD.finditer(text):
            start, end = match.span()
            tokens = tuple(i for i, (a, b) in enumerate(spans) if a < end and b > start)
            if tokens:  # a word behind the model's length stays
                found.append(Place(start, end, tokens))
        return ids, found

    @cached_property
    def most(self) -> int:
        """Tokens that a text may have."""
        own = getattr(inner(self.model).config, "max_position_embeddings", None)
        return int(min(own or 512, self.tokenizer.model_max_length, 512))

    def candidates(self, text: str) -> list[tuple[Place, list[str]]]:
        """Every word of a text with what may stand in its place, most probable or nearest first."""
        ids, places = self.places(text)
        alone = [p for p in places if self.context and len(p.tokens) == 1]
        found = dict(zip(alone, self.filled(ids, [p.tokens[0] for p in alone]), strict=True))
        return [(p, cased(found[p] if p in found else self.nearest([ids[t] for t in p.tokens]), text[p.start : p.end]))
                for p in places]  # fmt: skip

    def filled(self, ids: Sequence[int], hidden: Sequence[int]) -> Iterator[list[str]]:
        """For each of these tokens, hidden alone: the words that the model would put there."""
        core = inner(self.model)
        device = next(core.parameters()).device
        numbers = self.numbers.to(device)
        for start in range(0, len(hidden), self.batch):
            some = torch.tensor(hidden[start : start + self.batch])
            rows = torch.tensor([ids]).repeat(len(some), 1)
            rows[torch.arange(len(some)), some] = self.tokenizer.mask_token_id
            with evaluating(core), torch.no_grad():
                out: Any = core(input_ids=rows.to(device), attention_mask=torch.ones_like(rows).to(device))
            logits = out.logits[torch.arange(len(some)), some.to(device)][:, numbers].float()  # (words hidden, known)
            best = logits.topk(min(self.count, len(numbers)), -1).indices.cpu()
            yield from ([self.known[int(i)] for i in self.numbers[row]] for row in best)

    def nearest(self, ids: Sequence[int]) -> list[str]:
        """The words nearest to the mean of some tokens, themselves left out."""
        mean = normalize(self.embedding(torch.tensor(ids)).mean(0), dim=-1)
        near = self.table @ mean
        for i in ids:
            near = near.masked_fill(self.numbers == i, -torch.inf) if len(ids) == 1 else near
        return [self.known[int(i)] for i in self.numbers[near.topk(min(self.count, len(near))).indices]]


def unfit(model: nn.Module, tokenizer: Any, context: bool) -> list[Problem]:
    """What a model and its tokenizer lack for this."""
    found, name = [], type(model).__name__
    if not getattr(tokenizer, "is_fast", False):
        found.append(
            Problem("words cannot be found in the text", "model", "a fast tokenizer, which knows offsets", name)
        )
    fix = "context=False takes the nearest words of the embedding table"
    if context and not name.endswith("ForMaskedLM"):
        found.append(Problem("the model fills in no masks", "model", "a masked LM", name, fix))
    if context and getattr(tokenizer, "mask_token_id", None) is None:
        found.append(Problem("the tokenizer has no mask token", "model", got=name, fix=fix))
    return found


def cased(words: Sequence[str], like: str) -> list[str]:
    """Words written as `like` is: in capitals, or with a capital first."""
    if len(like) > 1 and like.isupper():
        return [w.upper() for w in words]
    return [w[:1].upper() + w[1:] for w in words] if like[:1].isupper() else list(words)

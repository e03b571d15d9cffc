"""Examples to token ids and labels: loss on completions only, the end of text trained, cuts that are counted.

Generative text is tokenized as it will be at inference: the context alone, then the answer as what the tokenizer adds
to it; where joining them would change the context's own tokens, the answer is tokenized alone. The tokenizer's opening
special token stands first; EOS follows every trained turn and carries a label.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.data.template import encode_messages
from featherweight.data.types import UNTRAINED, Encoded, Example

Pieces = list[tuple[str, str]]  # (context, trained answer), in order


def encode_lm(example: Example, tokenizer: Any, length: int | None) -> Encoded:
    """One generative example; `length` in tokens, None for no limit. See `encode_lm_all`."""
    return encode_lm_all([example], tokenizer, length)[0]


def encode_lm_all(examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
    """Many at once, with few calls of the tokenizer. Raises InputError where the tokenizer has no EOS or template."""
    chats = [e for e in examples if e.messages]
    plain = [e for e in examples if not e.messages]
    made = iter(encode_messages(chats, tokenizer)), iter(encode_turns(plain, tokenizer))
    opening = len(start_ids(tokenizer))
    return [cut(e, *next(made[0] if e.messages else made[1]), opening, length) for e in examples]


def encode_turns(examples: Sequence[Example], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of examples made of turns."""
    if not examples:
        return []
    eos, start = eos_id(tokenizer), start_ids(tokenizer)
    split = [pieces(e) for e in examples]
    answers = iter(answer_ids(tokenizer, [piece for ps in split for piece in ps]))
    made = []
    for ps in split:
        ids, labels = list(start), [UNTRAINED] * len(start)
        for _, answer in ps:
            context, rest = next(answers)
            end = [eos] if answer and rest[-1:] != [eos] else []
            ids += context + rest + end
            labels += [UNTRAINED] * len(context) + rest + end
        made.append((ids, labels))
    return made


def answer_ids(tokenizer: Any, found: Pieces) -> list[tuple[list[int], list[int]]]:
    """(context ids, answer ids) of each piece; contexts that repeat are tokenized once."""
    unique = list(dict.fromkeys(context for context, _ in found))
    ids = dict(zip(unique, ids_of(tokenizer, unique), strict=True))
    joined = ids_of(tokenizer, [context + answer for context, answer in found])
    grown = [whole[: len(ids[c])] == ids[c] for (c, _), whole in zip(found, joined, strict=True)]
    alone = iter(ids_of(tokenizer, [a for (_, a), g in zip(found, grown, strict=True) if not g]))
    return [(ids[c], whole[len(ids[c]) :] if g else next(alone))
            for (c, _), whole, g in zip(found, joined, grown, strict=True)]  # fmt: skip


def pieces(example: Example) -> Pieces:
    """Turns as (context, answer): untrained turns in a row are one context; a last context has no answer."""
    found, context = [], ""
    for turn in example.turns:
        if turn.trained:
            found.append((context, turn.text))
        context = "" if turn.trained else context + turn.text
    return [*found, (context, "")] if context else found


def cut(example: Example, ids: list[int], labels: list[int], opening: int, length: int | None) -> Encoded:
    """At most `length` tokens. The context before the first answer gives way first, its oldest tokens before its
    newest, down to a quarter of `length`; then the end is cut. The opening special token stays."""
    excess = max(0, len(ids) - length) if length is not None else 0
    if excess:
        first = next((i for i, label in enumerate(labels) if label != UNTRAINED), len(ids))
        left = min(excess, max(0, first - opening - (length or 0) // 4))
        keep = [*range(opening), *range(opening + left, len(ids) - (excess - left))]
        ids, labels = [ids[i] for i in keep], [labels[i] for i in keep]
    return Encoded(example.where, ids, labels, None, excess, example.source)


def encode_seq2seq(example: Example, tokenizer: Any, length: int | None) -> Encoded:
    """The contexts as input with the tokenizer's special tokens; answer and EOS as labels; each at most `length`."""
    eos = eos_id(tokenizer)
    source = "".join(t.text for t in example.turns if not t.trained)
    target = "".join(t.text for t in example.turns if t.trained)
    if not source:
        raise InputError(Problem("no input text", example.where, "a prompt and a completion", "text alone"))
    ids, truncated = limited(tokenizer, (source,), length)
    labels = ids_of(tokenizer, [target])[0] if target else None
    if labels is not None:
        labels = labels if labels[-1:] == [eos] else [*labels, eos]
        truncated += max(0, len(labels) - length) if length is not None else 0
        labels = labels[:length]
    return Encoded(example.where, ids["input_ids"], labels, None, truncated, example.source)


def encode_text(example: Example, tokenizer: Any, length: int | None, label: Any = None) -> Encoded:
    """A text or a pair as the tokenizer joins them, longest cut first; `label` is the task's form of the example's."""
    return encode_text_all([example], tokenizer, length, [label])[0]


def encode_text_all(
    examples: Sequence[Example], tokenizer: Any, length: int | None, labels: Sequence[Any] | None = None
) -> list[Encoded]:
    """Many texts at once: one call of the tokenizer, and one more for each row that must be cut."""
    if not examples:
        return []
    texts = [e.text for e in examples]
    pairs = [e.pair for e in examples] if examples[0].pair is not None else None
    whole = tokenizer(texts, pairs, verbose=False, truncation=False)
    made = []
    for i, e in enumerate(examples):
        row, truncated = {key: whole[key][i] for key in whole}, 0
        if length is not None and len(row["input_ids"]) > length:
            row, truncated = limited(tokenizer, (e.text,) if e.pair is None else (e.text, e.pair), length)
        label = labels[i] if labels is not None else None
        made.append(Encoded(e.where, row["input_ids"], label, row.get("token_type_ids"), truncated, e.source))
    return made


def limited(tokenizer: Any, texts: tuple[str, ...], length: int | None) -> tuple[dict[str, Any], int]:
    """The tokenizer's fields for one text or pair, cut to `length`, and how many tokens that cost."""
    whole = tokenizer(*texts, verbose=False, truncation=False)
    excess = max(0, len(whole["input_ids"]) - length) if length is not None else 0
    if not excess:
        return dict(whole), 0
    return dict(tokenizer(*texts, truncation="longest_first", max_length=length)), excess


def encode_all(task: Any, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
    """What `task.encode` makes of every example, through `task.encode_all(examples, tokenizer, length)` if any."""
    if batched := getattr(task, "encode_all", None):
        return list(batched(examples, tokenizer, length))
    return [task.encode(e, tokenizer, length) for e in examples]


def check_trainable(items: Iterable[Encoded]) -> list[str]:
    """Where the rows without a trained token are. Raises InputError if that is all of them."""
    items = list(items)
    bare = [item.where for item in items if not trainable(item)]
    if len(bare) == len(items):
        got = f"{len(items)} rows without a completion or label" if items else "no rows"
        fix = "add completions, assistant messages or labels; or raise --length if they were cut away"
        raise InputError(Problem("no row has a trained token", items[0].where if items else "data",
                                 "at least one", got, fix))  # fmt: skip
    return bare


def trainable(item: Encoded) -> bool:
    """A label that carries loss; the first token of an LM row is predicted from nothing and never does."""
    if not isinstance(item.labels, list) or not all(isinstance(v, int) for v in item.labels):
        return item.labels is not None
    shifted = item.labels[1:] if len(item.labels) == len(item.input_ids) else item.labels
    return any(v != UNTRAINED for v in shifted)


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def eos_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise InputError(Problem("the tokenizer has no end-of-text token", getattr(tokenizer, "name_or_path", ""),
                                 "an eos_token: without it the model cannot learn to stop",
                                 fix="set tokenizer.eos_token"))  # fmt: skip
    return int(tokenizer.eos_token_id)


def start_ids(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text (BOS, or none)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return list(full[:at])

"""Conversations to token ids and labels, by the tokenizer's own chat template and nothing else.

Templates with `{% generation %}` say themselves what the assistant wrote. For others the spans are found by rendering
growing prefixes of the conversation, which must be prefixes of the whole rendering. The token that ends an assistant's
turn is trained with it; where a template ends the last turn without one, EOS is appended and trained.
"""

import re
from collections.abc import Sequence
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import UNTRAINED, Example

GENERATION = re.compile(r"\{%-?\s*generation")
Span = tuple[int, int]


def encode_messages(examples: Sequence[Example], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) per conversation. Raises InputError: no template, no fast tokenizer, or a template that fails."""
    if not examples:
        return []
    template = chat_template(tokenizer)
    if GENERATION.search(template):
        marked = [by_mask(e, tokenizer) for e in examples]
    else:
        marked = by_prefixes(examples, tokenizer)
    return [finish(e, ids, mask, tokenizer) for e, (ids, mask) in zip(examples, marked, strict=True)]


def chat_template(tokenizer: Any) -> str:
    name = getattr(tokenizer, "name_or_path", "")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(Problem("the tokenizer has no chat template", name, "one, for rows with messages",
                                 fix="use a chat model's tokenizer, set tokenizer.chat_template, "
                                     "or give rows as prompt and completion"))  # fmt: skip
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(Problem("a slow tokenizer cannot tell where the assistant's text lies", name, "a fast one"))
    return str(tokenizer.get_chat_template())


def by_mask(example: Example, tokenizer: Any) -> tuple[list[int], list[bool]]:
    made = rendered(example, tokenizer, list(example.messages), tokenize=True, return_dict=True,
                    return_assistant_tokens_mask=True)  # fmt: skip
    return list(made["input_ids"]), [bool(m) for m in made["assistant_masks"]]


def by_prefixes(examples: Sequence[Example], tokenizer: Any) -> list[tuple[list[int], list[bool]]]:
    texts = [rendered(e, tokenizer, list(e.messages), tokenize=False) for e in examples]
    problems: list[Problem] = []
    spans = [spans_of(e, text, tokenizer, problems) for e, text in zip(examples, texts, strict=True)]
    raise_all(problems)
    coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (list(ids), [any(a < end and start < b for start, end in found) and b > a for a, b in offsets])
        for ids, offsets, found in zip(coded["input_ids"], coded["offset_mapping"], spans, strict=True)
    ]


def spans_of(example: Example, text: str, tokenizer: Any, problems: list[Problem]) -> list[Span]:
    """Where in the rendering each assistant turn lies, its end token included, the white space after it not."""
    found = []
    for i, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        before = rendered(example, tokenizer, list(example.messages[:i]), tokenize=False, add_generation_prompt=True)
        after = rendered(example, tokenizer, list(example.messages[: i + 1]), tokenize=False)
        if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            problems.append(Problem("the chat template renders earlier turns differently later on, so the assistant's "
                                    "text cannot be found", f"{example.where}:messages[{i}]",
                                    "a template whose rendering only grows",
                                    fix="mark the assistant's text with {% generation %}"))  # fmt: skip
        found.append((len(before), len(after.rstrip())))
    return found


def rendered(example: Example, tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    """apply_chat_template; what the template itself refuses is the row's problem."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise InputError(Problem("the chat template refuses the row", f"{example.where}:messages",
                                 got=str(error))) from error  # fmt: skip


def finish(example: Example, ids: list[int], mask: list[bool], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Train the special token that directly follows an assistant's text; append EOS where the last turn has none."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    last = [i for i, m in enumerate(mask) if m]
    for i in last:
        if ids[i] not in special and i + 1 < len(ids) and not mask[i + 1] and ids[i + 1] in special:
            mask[i + 1] = True
    labels = [token if m else UNTRAINED for token, m in zip(ids, mask, strict=True)]
    answered = bool(last) and example.messages[-1]["role"] == "assistant"
    if answered and not any(ids[i] in special for i in range(last[-1], len(ids)) if mask[i]):
        if tokenizer.eos_token_id is None:
            raise InputError(Problem("neither the chat template nor the tokenizer has an end token", example.where,
                                     "one: without it the model cannot learn to stop"))  # fmt: skip
        return [*ids[: last[-1] + 1], tokenizer.eos_token_id], [*labels[: last[-1] + 1], tokenizer.eos_token_id]
    return ids, labels

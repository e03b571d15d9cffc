"""Many continuations of few texts: what is computed of a text is computed once and shared by all that follow it.

    decoder            text ─► keys, values ─► a copy per continuation; continuation but its last token ─► logits
                       text ─► logits of every continuation's first token
    encoder-decoder    text ─► encoder's states ─► keys, values of each cross-attention ─► a copy per continuation

Each function reads the texts `ids` (b, s) with their `mask` and gives `after(rows, targets)`: logits (m, t, V) at the
tokens `targets` (m, t) of continuations, `rows` (m) saying which text each follows. Pads in them are any id, for
nothing in front of a pad sees it. k continuations of n tokens cost s + k (n - 1) tokens behind a text of s; one by one
they cost k (s + n - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn

After = Callable[[Tensor, Tensor], Tensor]
COPIED = 1 << 15  # positions of texts that are copied at once
LOGITS = 1 << 25  # logits at once


def after_text(model: nn.Module, ids: Tensor, mask: Tensor) -> After:
    """Of a decoder. Where the model keeps no cache that could be copied (recurrent states, recomputed activations),
    every continuation goes with its own copy of the text."""
    ids, mask = padded_in_front(ids, mask)
    with last_position(model):
        out = model(**placed(model, ids, mask), use_cache=True)
    cache, first = getattr(out, "past_key_values", None), out.logits[:, -1:]
    if not copies(cache):
        return lambda rows, targets: joined(model, ids, mask, rows, targets)

    def after(rows: Tensor, targets: Tensor) -> Tensor:
        if targets.shape[1] == 1:
            return first[rows]
        new, whole = targets[:, :-1], torch.cat([mask[rows], torch.ones_like(targets[:, :-1])], 1)
        rest = model(**placed(model, new, whole), past_key_values=picked(cache, rows), use_cache=True).logits
        return torch.cat([first[rows], rest], 1)

    return after


def joined(model: nn.Module, ids: Tensor, mask: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Without sharing: (m, s + t) texts with their continuations."""
    new = torch.cat([ids[rows], targets[:, :-1]], 1)
    whole = torch.cat([mask[rows], torch.ones_like(targets[:, :-1])], 1)
    with last_position(model, targets.shape[1]):
        made: Tensor = model(**placed(model, new, whole)).logits
    return made[:, -targets.shape[1] :]


def beside_text(model: nn.Module, ids: Tensor, mask: Tensor) -> After:
    """Of an encoder-decoder. Where its decoder keeps no cache, each continuation computes its own cross-attention."""
    from transformers.modeling_outputs import BaseModelOutput

    base: Any = inner(model)
    states = base.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    start = base.prepare_decoder_input_ids_from_labels(ids.new_zeros(len(ids), 1))
    of = {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask}
    out = model(**of, decoder_input_ids=start, use_cache=True)
    cache, first = getattr(out, "past_key_values", None), out.logits[:, -1:]

    def after(rows: Tensor, targets: Tensor) -> Tensor:
        if targets.shape[1] == 1:
            return first[rows]
        of = {"encoder_outputs": BaseModelOutput(last_hidden_state=states[rows]), "attention_mask": mask[rows]}
        if not copies(cache):
            shifted = base.prepare_decoder_input_ids_from_labels(targets)
            whole: Tensor = model(**of, decoder_input_ids=shifted, use_cache=False).logits
            return whole
        given = {"decoder_input_ids": targets[:, :-1], "past_key_values": picked(cache, rows), "use_cache": True}
        return torch.cat([first[rows], model(**of, **given).logits], 1)

    return after


def copies(cache: Any) -> bool:
    """Whether rows can be picked from this cache: keys and values alone, and some of them."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    if type(cache) is EncoderDecoderCache:
        return copies(cache.self_attention_cache) and copies(cache.cross_attention_cache)
    return type(cache) is DynamicCache and cache.get_seq_length() > 0


def picked(cache: Any, rows: Tensor) -> Any:
    """A cache of these rows; the one they come from stays."""
    made = copy(cache)
    if hasattr(cache, "cross_attention_cache"):
        made.self_attention_cache = picked(cache.self_attention_cache, rows)
        made.cross_attention_cache = picked(cache.cross_attention_cache, rows)
        made.is_updated = dict(cache.is_updated)
        return made
    made.layers = [copy(layer) for layer in cache.layers]
    for layer in made.layers:
        layer.batch_select_indices(rows)
    return made


def pieces(lengths: Tensor, text: int, vocabulary: int) -> Iterator[Tensor]:
    """Numbers of continuations to compute together, those of like length, so that copies and logits stay small."""
    order = lengths.argsort(stable=True)
    longest = int(lengths.max())
    size = max(1, min(COPIED // (text + longest), LOGITS // (longest * vocabulary)))
    yield from order.split(size)


def placed(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The last tokens of what `mask` covers, each at its place among the real ones, for models that are told."""
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in signature(inner(model).forward).parameters:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return given


def padded_in_front(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their pads moved from the end to the front, in their order otherwise."""
    order = mask.argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


@contextmanager
def last_position(model: nn.Module, count: int = 1) -> Iterator[None]:
    """The output head computes the last `count` positions alone: nobody reads the others."""
    head = getattr(inner(model), "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][:, -count:].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()

"""Many continuations of few texts: what is computed of a text is computed once and shared by all that follow it.

    decoder            text but its last token ─► keys, values ─► one copy per continuation
                       last token + continuation ─► logits
    encoder-decoder    text ─► encoder's states ─► one copy per continuation; decoder over it ─► logits

`rows` (m) says which text each of the m continuations `targets` (m, t) follows; pads in them are any id, for nothing
in front of a pad sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn


def after_text(model: nn.Module, ids: Tensor, mask: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Logits (m, t, V) at the tokens of `targets` behind the texts `ids` (b, s) with their `mask`.

    Where the model keeps no cache that could be copied (recurrent states, recomputed activations), every continuation
    goes with its own copy of the text.
    """
    ids, mask = padded_in_front(ids, mask)
    cache = seen(model, ids[:, :-1], mask[:, :-1]) if ids.shape[1] > 1 else None
    if cache is None:
        return joined(model, ids, mask, rows, targets)
    cache.batch_select_indices(rows)
    new = torch.cat([ids[:, -1:][rows], targets[:, :-1]], 1)  # (m, t)
    whole = torch.cat([mask[rows], torch.ones_like(targets[:, :-1])], 1)
    given = placed(model, new, whole)
    made: Tensor = model(**given, past_key_values=cache, use_cache=True).logits
    return made


def joined(model: nn.Module, ids: Tensor, mask: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """`after_text` without sharing: (m, s + t) texts with their continuations."""
    new = torch.cat([ids[rows], targets[:, :-1]], 1)
    whole = torch.cat([mask[rows], torch.ones_like(targets[:, :-1])], 1)
    made: Tensor = model(**placed(model, new, whole)).logits
    return made[:, -targets.shape[1] :]


def beside_text(model: nn.Module, ids: Tensor, mask: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Logits (m, t, V) of an encoder-decoder's decoder at `targets`, of the texts `ids` (b, s) with their `mask`."""
    from transformers.modeling_outputs import BaseModelOutput

    base: Any = inner(model)
    states = base.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    shifted = base.prepare_decoder_input_ids_from_labels(targets)
    shared = BaseModelOutput(last_hidden_state=states[rows])
    made: Tensor = model(
        encoder_outputs=shared, attention_mask=mask[rows], decoder_input_ids=shifted, use_cache=False
    ).logits
    return made


def seen(model: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    """The cache of keys and values after these tokens, None where the model has none that rows can be picked from."""
    from transformers.cache_utils import DynamicCache

    with one_position(model):
        out = model(**placed(model, ids, mask), use_cache=True)
    cache = getattr(out, "past_key_values", None)
    return cache if type(cache) is DynamicCache else None


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
def one_position(model: nn.Module) -> Iterator[None]:
    """The output head computes one position, which nobody reads: the logits of a text are not wanted."""
    head = getattr(inner(model), "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][:1, -1:].clone(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()

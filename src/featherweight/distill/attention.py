"""Attention scores and maps from the queries and keys of a block, and the proof that they are the model's own.

    S = q kᵀ / √d      A = softmax(S) over the keys a query may look at      q, k (b, h, s, d)

q and k are those that the attention function is handed: in Llama turned by their positions. Where something is added to
S (T5, DeBERTa, BLOOM) this is not all: the proof fails, and the recipe is refused in favor of one that compares
projections.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem
from featherweight.distill.losses.reduce import products
from featherweight.distill.losses.relations import split_heads
from featherweight.distill.taps import TURNED, Seen, Tap
from featherweight.tasks.modes import evaluating
from featherweight.tasks.token_loss import quiet

FAR, HALF = 1e-4, 2e-2  # most that a probability may be off in fp32, and where any weight is of 16 bits


def scores(seen: Seen, block: int) -> Tensor:
    """S before the softmax, without mask: (b, h, s, s)."""
    there = seen.projected[block]
    found = {r: there[TURNED[r] if TURNED[r] in there else r] for r in ("query", "key")}
    q, k = (split_heads(x, seen.heads, role) for role, x in found.items())
    return products(q, k)


def maps(seen: Seen, block: int, keys: Tensor) -> Tensor:
    """A over the keys a query may look at (`keys` (b, 1 or s, s)): (b, h, s, s)."""
    S = scores(seen, block)
    there = keys.unsqueeze(1).expand(-1, -1, S.shape[-2], -1)
    there = there | ~there.any(-1, keepdim=True)  # a padded query that may look at nothing is left out by the mean
    return S.masked_fill(~there, torch.finfo(S.dtype).min).softmax(-1)


def causal(model: nn.Module) -> bool:
    """Whether a token sees only those before it: the first one's state stays when the second is another."""
    ids = torch.tensor([[0, 1], [0, 2]], device=next(model.parameters()).device)
    with torch.no_grad(), evaluating(model):
        first = Tap(model, hidden=True)({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).hidden[-1][:, 0]
    return bool(torch.allclose(first[0], first[1], atol=1e-5))


@contextmanager
def eager(model: Any) -> Any:
    """Eager attention for a while, which alone gives its maps."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def prove(tap: Tap, inputs: Mapping[str, Tensor], keys: Tensor, mask: Tensor, whose: str) -> None:
    """Raise InputError unless the maps made of a model's queries and keys are those of its own eager attention."""
    model: Any = tap.model
    grouped = {r: s.module for sites in tap.sites.values() for r, s in sites.items()}
    fix = "MiniLM(version=2) compares projections instead"
    what = "attention maps cannot be made of this model's queries and keys"
    if not grouped or not tap.heads:
        raise InputError(Problem(what, whose, got=type(model).__name__, fix=fix))
    exact = torch.autocast(keys.device.type, enabled=False)  # the run's arithmetic is not what is to be proven
    with torch.no_grad(), evaluating(model), exact:
        seen = tap(inputs)
        if any(p["query"].shape != p["key"].shape and TURNED["key"] not in p for p in seen.projected.values()):
            raise InputError(Problem(what, whose, "as many key heads as query heads", "fewer", fix))
        with eager(model), tap.around():
            own = model(**inputs, **quiet(model), output_attentions=True).attentions
    far = HALF if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()) else FAR
    for block in seen.projected:
        apart = (maps(seen, block, keys) - own[block]).abs().amax((1, 3))[mask]  # real queries
        if not apart.max() < far:
            got = f"{type(model).__name__}, block {block}: off by {float(apart.max()):.2g}"
            raise InputError(Problem(what, whose, got=got, fix=fix))

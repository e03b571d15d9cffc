"""Cross-entropy of tokens with logits only where there is loss.

    hidden (b, s, d) ──select──► (n, d) ──head──► logits (n, V) ──► Σ -log p(target)      n = positions that carry loss

The model's own forward runs; a hook on its output head hands the head the selected positions alone, so that whatever
surrounds the head (autocast, sharding, dispatch, adapters on it) holds for them. Three ways, from cheap to general:

    chunked    nothing follows the head: the loss is reduced inside the hook, chunk by chunk, and the logits never exist
    selected   something per position follows it (Gemma 2's soft cap, Granite's and Cohere's scales): the model's own
               logits of the selected positions
    full       anything else: the model's logits of every position

Which one is decided once per model, by putting known logits out of the head and seeing what the model makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from featherweight.core.host import Host, frozen_class
from featherweight.tasks.modes import evaluating, inner

IGNORED = -100
LOGITS = 1 << 23  # logits held at once by the plain path
PROBED = 64  # positions of the probe: a row of a template is whole
ways: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def token_loss(model: nn.Module, inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Sum of cross-entropy (nats, fp32, 0-d) over the positions of `targets` (b, s) that are not -100.

    `targets[:, t]` is what position t predicts: shifted already for a causal model. Equals the model's own
    `labels=` loss times the number of positions.
    """
    given: dict[str, Any] = {**inputs, **quiet(model)}
    way = ways.get(inner(model))
    if way is None:
        way = ways[inner(model)] = probe(model, given)
    return LOSSES[way](model, given, targets)


def chunked(model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> Tensor:
    losses: list[Tensor] = []
    busy = False

    def reduce(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal busy
        if busy or losses:
            return None  # the loss calls the head itself
        busy = True
        losses.append(head_loss(head, *select(args[0], targets)))
        busy = False
        one = args[0][:1, :1].clone(memory_format=torch.contiguous_format)  # a slice would make torch copy the head
        return (one, *args[1:])  # the model goes on with one position, which nobody reads

    with output_head(model).register_forward_pre_hook(reduce):
        model(**inputs)
    return losses[0]


def selected(model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> Tensor:
    with output_head(model).register_forward_pre_hook(lambda _, args: (select(args[0], targets)[0], *args[1:])):
        logits: Tensor = model(**inputs).logits  # (n, V)
    return cross_entropy(logits.float(), targets[targets != IGNORED].to(logits.device), reduction="sum")


def full(model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> Tensor:
    logits, wanted = select(model(**inputs).logits, targets)
    return cross_entropy(logits.float(), wanted, reduction="sum")


LOSSES: dict[str, Callable[[nn.Module, Mapping[str, Any], Tensor], Tensor]] = {
    "chunked": chunked, "selected": selected, "full": full,
}  # fmt: skip


def select(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) states and (n) targets of the positions that carry loss; virtual tokens in front are skipped."""
    targets = targets.to(states.device)
    kept = targets != IGNORED
    return states[:, -targets.shape[1] :][kept], targets[kept]


def head_loss(head: nn.Module, hidden: Tensor, wanted: Tensor) -> Tensor:
    """Summed cross-entropy of head(hidden) (n, V) against `wanted` (n), a chunk at a time."""
    if fusable(head):
        from featherweight.kernels import linear_cross_entropy

        return linear_cross_entropy(hidden, head.weight, wanted, bias=head.bias)  # type: ignore[arg-type]
    size = max(1, LOGITS // rows_of(head))
    pieces = list(zip(hidden.split(size), wanted.split(size), strict=True))
    if len(pieces) < 2:
        return piece_loss(head, hidden, wanted)
    losses = [checkpoint(piece_loss, head, h, w, use_reentrant=False) for h, w in pieces]
    return torch.stack(losses).sum()


def piece_loss(head: nn.Module, hidden: Tensor, wanted: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), wanted, reduction="sum")


def fusable(head: nn.Module) -> bool:
    """Whether calling the head is exactly a matrix product with its weight: an nn.Linear with nothing on it."""
    adapted = isinstance(head, Host) and any(name in head.adapters for name in head.switch.on)
    followed = "_hf_hook" in vars(head) or head._forward_hooks
    return frozen_class(head) is nn.Linear and not adapted and not followed and whole_here(head.weight)


def whole_here(weight: object) -> bool:
    """A parameter that no other process holds a part of (a DTensor's has placements)."""
    return isinstance(weight, nn.Parameter) and not hasattr(weight, "placements")


def rows_of(head: nn.Module) -> int:
    """The size of the vocabulary, from whatever kind of head."""
    return int(getattr(head, "out_features", 0) or next(head.parameters()).shape[0])


def output_head(model: nn.Module) -> nn.Module:
    head: nn.Module = inner(model).get_output_embeddings()  # type: ignore[operator]
    return head


def quiet(model: nn.Module) -> dict[str, bool]:
    """No key/value cache, for models that know one."""
    known = signature(inner(model).forward).parameters
    takes = "use_cache" in known or any(p.kind is Parameter.VAR_KEYWORD for p in known.values())
    return {"use_cache": False} if takes else {}


def probe(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """The cheapest way that is exact for this model: two forwards of one row of at most 64 tokens."""
    head = getattr(inner(model), "get_output_embeddings", lambda: None)()
    if head is None:
        return "full"
    small = {k: v[:1, :PROBED] if isinstance(v, Tensor) else v for k, v in inputs.items()}
    steps = small.get("decoder_input_ids", small["input_ids"]).shape[1]
    picked = torch.where(torch.arange(steps)[None] % 2 == 0, 0, IGNORED)  # every other position
    everywhere, _ = known_logits(inner(model), head, small, None)
    some, put = known_logits(inner(model), head, small, picked)
    if everywhere is None or some is None or put is None:
        return "full"
    wanted = everywhere[:, -steps:][picked.to(everywhere.device) != IGNORED]
    if not same(some, wanted):
        return "full"
    return "chunked" if same(some, put) else "selected"


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.float(), b.float())


def known_logits(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Any], picked: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What the model makes of known logits, and those logits: -64 to 64 over the vocabulary, another at each position.

    `picked` selects positions in front of the head; None leaves all. (None, None) where the head is not called once.
    """
    put: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if picked is None else (select(args[0], picked)[0], *args[1:])

    def after(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        steps = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
        scale = torch.arange(1, steps + 1, device=out.device)[None, :, None] / steps
        logits = scale * torch.linspace(-64, 64, out.shape[-1], device=out.device)  # (1, s, V)
        put.append((logits if picked is None else select(logits, picked)[0]).to(out.dtype))
        return put[-1]

    with torch.no_grad(), evaluating(model), head.register_forward_pre_hook(before), head.register_forward_hook(after):
        try:
            made = model(**inputs).logits
        except (RuntimeError, ValueError, IndexError):
            if picked is None:
                raise
            return None, None  # the model needs all positions in front of its head
    return (made, put[0]) if len(put) == 1 else (None, None)

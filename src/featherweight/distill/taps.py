"""What one forward of a model shows: logits, hidden states, and the queries, keys and values of chosen blocks.

    hidden[0] the embeddings    hidden[i + 1] after block i    hidden[-1] after the last block and the final norm

Hidden states come through transformers' own `output_hidden_states`; projections through hooks on the linears that the
anatomy names (slices of fused ones), before any rotation of positions. Attention maps are made of queries and keys,
softmax(q kᵀ / √d), rather than asked for: only eager attention gives any (other kinds an empty tuple), and in training
it gives them after dropout. Where a model hands its queries and keys to an attention function they are taken there,
turned by their positions and scaled as the model does (`interop/handed.py`); elsewhere the projections stand for them.
That the maps are the model's own is proven once, in `attention.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from featherweight.core.anatomy import anatomy, find_blocks
from featherweight.core.errors import FeatherweightError, InputError, Problem, listed
from featherweight.core.site import Site
from featherweight.distill.context import Edit
from featherweight.interop.attention import asks
from featherweight.interop.handed import handed
from featherweight.tasks.token_loss import quiet

PROJECTIONS = ("query", "key", "value")
TURNED = {"query": "turned_query", "key": "turned_key"}  # as they enter the attention function


@dataclass(frozen=True, eq=False)
class Seen:
    """One forward. `projected[block][role]` is (batch, seq, width); `heads` the model's number of attention heads;
    `read` the hidden states of an encoder whose decoder's are in `hidden`."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    projected: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    heads: int = 0
    read: tuple[Tensor, ...] = ()

    def against(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """A student's logits and a teacher's, this one's, over the same classes."""
        return logits, self.logits


class Tap:
    """Sees forwards of one model: hidden states where `hidden`, projections of the blocks asked for, and what their
    attention functions are handed where `maps`. Logits are cut to `words`; with a `context` the model reads more than
    it is given, and shows what it makes of what it is given; `around` is what every forward runs in."""

    def __init__(self, model: nn.Module, hidden: bool = False, blocks: Sequence[int] = (), maps: bool = False,
                 words: int | None = None, context: Edit | None = None,
                 around: Callable[[], AbstractContextManager[None]] = nullcontext):  # fmt: skip
        self.model, self.hidden, self.words, self.context, self.around = model, hidden, words, context, around
        self.blocks = len(find_blocks(model))
        self.sites = projections(model, blocks) if blocks else {}
        self.doors = {b: door for b in self.sites if (door := attention_of(model, b))} if maps else {}
        self.heads = int(getattr(getattr(model, "config", None), "num_attention_heads", 0) or 0)

    def __call__(self, inputs: Mapping[str, Any]) -> Seen:
        caught: dict[int, dict[str, Tensor]] = {block: {} for block in self.sites}
        with ExitStack() as stack:
            stack.enter_context(self.around())
            for block, sites in self.sites.items():
                for role, site in sites.items():
                    hook = site.module.register_forward_hook(catching(caught[block], role, site))
                    stack.callback(hook.remove)
            for block, door in self.doors.items():
                stack.enter_context(handed(door, turning(caught[block])))
            more = {"output_hidden_states": True} if self.hidden else {}
            given = inputs if self.context is None else self.context.edited(inputs)
            out: Any = self.model(**given, **quiet(self.model), **more)
        read, states = self.states(out) if self.hidden else ((), ())
        logits = out.logits if self.words is None else out.logits[..., : self.words]
        if self.context is not None and read:
            read = tuple(map(self.context.aligned, read))
        elif self.context is not None and "decoder_input_ids" not in inputs:
            logits, states = self.context.aligned(logits), tuple(map(self.context.aligned, states))
        return Seen(logits, states, caught, self.heads, read)

    def states(self, out: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The hidden states of an encoder beside a decoder, and those of the model or its decoder; raises
        FeatherweightError where there is not one more than blocks for each."""
        read = tuple(out.get("encoder_hidden_states") or ())
        states = tuple(out.get("decoder_hidden_states") or out.get("hidden_states") or ())
        if len(read) + len(states) != self.blocks + (2 if read else 1):
            name = type(self.model).__name__
            raise FeatherweightError(f"{name} gives {len(states)} hidden states for {self.blocks} blocks")
        return read, states


def attention_of(model: nn.Module, block: int) -> nn.Module | None:
    """The attention module of a block, where it asks for its attention function."""
    within = find_blocks(model)[block][1]
    return next((m for m in within.modules() if asks(m)), None)


def turning(into: dict[str, Tensor]) -> Callable[[Tensor, Tensor, float], None]:
    """Keeps what an attention function is handed so that q kᵀ / √d are its scores: (b, h, s, d) -> (b, s, h d), with
    as many key heads as query heads."""

    def keep(q: Tensor, k: Tensor, scale: float) -> None:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        into[TURNED["query"]] = (q * (scale * q.shape[-1] ** 0.5)).transpose(1, 2).flatten(2)
        into[TURNED["key"]] = k.transpose(1, 2).flatten(2)

    return keep


def catching(into: dict[str, Tensor], role: str, site: Site) -> Callable[..., None]:
    """A hook that keeps a module's output, or the slice of it that is the role's."""

    def catch(_: nn.Module, args: Any, out: Tensor) -> None:
        into[role] = out if site.rows is None else out[..., site.rows.to(out.device)]

    return catch


def projections(model: nn.Module, blocks: Sequence[int]) -> dict[int, dict[str, Site]]:
    """Where the queries, keys and values of some blocks are made. Raises InputError where a block has not one each."""
    whole = anatomy(model)
    found: dict[int, dict[str, Site]] = {}
    for block in blocks:
        stem = whole.blocks[block][0] + "."
        mine = {r: [s for s in whole.sites(r) if s.path.startswith(stem)] for r in PROJECTIONS}
        odd = [r for r, sites in mine.items() if len(sites) != 1]
        if odd:
            raise InputError(Problem("a block does not have one projection of each kind", stem[:-1],
                                     "one query, key and value", f"another number of {listed(odd)}",
                                     "take a recipe that compares logits: KD"))  # fmt: skip
        found[block] = {r: sites[0] for r, sites in mine.items()}
    return found

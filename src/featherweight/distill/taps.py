"""What one forward of a model shows: logits, hidden states, and the queries, keys and values of chosen blocks.

    hidden[0] the embeddings    hidden[i + 1] after block i    hidden[-1] after the last block and the final norm

Hidden states come through transformers' own `output_hidden_states`; projections through hooks on the linears that the
anatomy names (slices of fused ones), before any rotation of positions. Attention maps are made of these,
softmax(q kᵀ / √d), rather than asked for: only eager attention gives any (other kinds an empty tuple), and in training
it gives them after dropout. That they are the model's own is proven once, in `attention.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from featherweight.core.anatomy import anatomy, find_blocks
from featherweight.core.errors import FeatherweightError, InputError, Problem, listed
from featherweight.core.site import Site
from featherweight.tasks.token_loss import quiet

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class Seen:
    """One forward. `projected[block][role]` is (batch, seq, width); `heads` the model's number of attention heads."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    projected: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    heads: int = 0

    def against(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """A student's logits and a teacher's, this one's, over the same classes."""
        return logits, self.logits


class Tap:
    """Sees forwards of one model: hidden states where `hidden`, projections of the blocks asked for."""

    def __init__(self, model: nn.Module, hidden: bool = False, blocks: Sequence[int] = ()):
        self.model, self.hidden = model, hidden
        self.blocks = len(find_blocks(model))
        self.sites = projections(model, blocks) if blocks else {}
        self.heads = int(getattr(getattr(model, "config", None), "num_attention_heads", 0) or 0)

    def __call__(self, inputs: Mapping[str, Any]) -> Seen:
        caught: dict[int, dict[str, Tensor]] = {block: {} for block in self.sites}
        with ExitStack() as stack:
            for block, sites in self.sites.items():
                for role, site in sites.items():
                    hook = site.module.register_forward_hook(catching(caught[block], role, site))
                    stack.callback(hook.remove)
            more = {"output_hidden_states": True} if self.hidden else {}
            out: Any = self.model(**inputs, **quiet(self.model), **more)
        return Seen(out.logits, self.states(out) if self.hidden else (), caught, self.heads)

    def states(self, out: Any) -> tuple[Tensor, ...]:
        """The hidden states; raises FeatherweightError where there is not one more than blocks."""
        states = tuple(out.get("hidden_states") or ())
        if len(states) != self.blocks + 1:
            name = type(self.model).__name__
            raise FeatherweightError(f"{name} gives {len(states)} hidden states for {self.blocks} blocks")
        return states


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

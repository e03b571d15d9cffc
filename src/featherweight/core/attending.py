"""The attention function is a host: prefixes and gated prompts act on queries, keys and values, whatever computes them.

    module.forward ── q, k, v, mask ──►  attend(…)  ──►  attention function on [K; k], [V; v], [1; mask]

An adapter on an attention module declares

* `past() -> K, V`, (n, kv_heads · head_dim) each: keys and values that every query of its rows sees, before the real
  ones. Rows of one batch may bring different numbers of them: they are padded on the left and masked.
* `attend(base, q, k, v, mask, **kwargs)`: middleware around the function itself; `base(...)` gives (output, weights),
  `base.host.module` is the module. q is (batch, heads, time, head_dim), the output (batch, time, heads, head_dim).

Nothing virtual enters the KV cache, and no global or config changes: the module's own forward runs over a view of the
module that names another function, or with another cache in its hands (`doors`: interop knows how a library's modules
are entered).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.rows import Group, Plan, nest
from featherweight.core.site import Site


class Door(Protocol):
    """How the attention modules of a library are entered."""

    def fits(self, module: nn.Module, law: str) -> bool:
        """Whether adapters with this law, "past" or "attend", can act inside the module."""

    def opened(self, host: Any, groups: Sequence[Group]) -> Any:
        """The host, in the shape of a host, as it is with what these groups declare."""


doors: list[Door] = []


@dataclass(frozen=True)
class Front:
    """The virtual keys and values of a batch: `past` of each group, and `owner` (batch,), the group of each row.

    They are padded on the left to the longest; `on` (1 or batch, n) says which of them a row has, `full` that every
    row has all. `owner` is None where there is one group.
    """

    past: Sequence[Sequence[tuple[Tensor, Tensor]]]
    owner: Tensor | None
    on: Tensor
    full: bool

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[K; k], [V; v] of keys and values (batch, kv_heads, time, head_dim)."""
        return self.joined(0, k), self.joined(1, v)

    def joined(self, which: int, x: Tensor) -> Tensor:
        table = torch.stack([ended([pair[which] for pair in of], self.on.shape[1], x) for of in self.past])
        rows = table.expand(len(x), -1, -1, -1) if self.owner is None else table[self.owner]
        return torch.cat([rows, x], 2)


@dataclass(frozen=True)
class Attention:
    """An attention module and what makes its keys and values."""

    path: str
    module: nn.Module
    key: Site
    value: Site

    @property
    def site(self) -> Site:
        return Site(self.path, self.module, "attention")

    @property
    def heads(self) -> int:
        """Heads of the queries."""
        config: Any = self.module.config
        return int(config.num_attention_heads)


class AtAttention(Adapter):
    """Base of adapters on attention modules: what `past` and `attend` declare is done for all rows together."""

    past: Callable[[], tuple[Tensor, Tensor]] | None = None
    attend: Callable[..., Any] | None = None

    @staticmethod
    def joint(host: Any, groups: Sequence[Group], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The attention module's own forward; other adapters on the module itself go around it."""
        law = "attend" if any(getattr(a, "attend", None) for _, stack in groups for a in stack) else "past"
        around = [(rows, tuple(a for a in stack if not isinstance(a, AtAttention))) for rows, stack in groups]
        return through(door(host, law).opened(host, groups), around, args, kwargs)


@dataclass(frozen=True)
class Masks:
    """What a function takes masks to be: `causal` without one, and True where "seen" or "added" to the scores.

    A mask of two axes marks the padding, whatever the kind; a function whose `kind` is "padding" takes no other.
    """

    causal: bool
    kind: str


class Function:
    """The attention function of one call, in the shape of a host."""

    def __init__(self, module: Any, run: Callable[..., Any]):
        self.module, self.run = module, run
        self.frozen_class = Function

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return self.run(self.module, q, k, v, mask, **kwargs)


def attended(
    function: Function,
    masks: Masks,
    groups: Sequence[Group],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function with the groups' adapters: (output, weights of the real keys or None)."""
    front = lay(groups, q.device)
    n = 0 if front is None else front.on.shape[1]
    if front is not None:
        mask = widened(mask, front, masks, q, q.shape[2], k.shape[2])
        k, v = front.before(k, v)
        if kwargs.get("position_bias") is not None:  # T5: no distance to what has no place
            kwargs["position_bias"] = F.pad(kwargs["position_bias"], (n, 0))
    laws = [(rows, tuple(a.attend for a in stack if getattr(a, "attend", None))) for rows, stack in groups]
    y, weights = through(function, laws, (q, k, v, mask), kwargs)
    return y, weights if weights is None else weights[..., n:]


def through(host: Any, groups: Sequence[Group], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `host` once, inside the middleware of each group."""
    if not any(stack for _, stack in groups):
        return Base(host)(*args, **kwargs)
    if len(groups) == 1:
        return Base(host, groups[0][1])(*args, **kwargs)
    index = torch.cat([rows for rows, _ in groups if rows is not None])
    return nest(host, Plan(None, len(index), index.device, list(groups), index.argsort()), args, kwargs)


def lay(groups: Sequence[Group], device: torch.device) -> Front | None:
    """The virtual keys and values of all rows; None for none at all."""
    past = [[a.past() for a in stack if getattr(a, "past", None)] for _, stack in groups]
    sizes = [sum(len(K) for K, _ in of) for of in past]
    n = max(sizes)
    if not n:
        return None
    if len(groups) == 1:
        return Front(past, None, torch.ones(1, n, dtype=torch.bool, device=device), True)
    numbered = [(rows, torch.full_like(rows, i)) for i, (rows, _) in enumerate(groups) if rows is not None]
    owner = torch.cat([i for _, i in numbered])[torch.cat([rows for rows, _ in numbered]).argsort()]
    lengths = torch.tensor(sizes, device=device)[owner]
    return Front(past, owner, torch.arange(n, device=device) >= n - lengths[:, None], min(sizes) == n)


def ended(parts: Sequence[Tensor], n: int, x: Tensor) -> Tensor:
    """The parts (·, kv_heads · head_dim) one after the other at the end of n places: (kv_heads, n, head_dim)."""
    heads, size = x.shape[1], x.shape[3]
    if not parts:
        return x.new_zeros(heads, n, size)
    whole = torch.cat([p.to(x.dtype) for p in parts])
    own = F.pad(whole, (0, 0, n - len(whole), 0)).view(n, -1, size).transpose(0, 1)
    return own.repeat_interleave(heads // len(own), 0)  # Falcon repeats grouped keys before it caches them


def widened(mask: Tensor | None, front: Front, masks: Masks, x: Tensor, queries: int, keys: int) -> Tensor | None:
    """The mask with the virtual keys in front, which every query of their rows sees, also past a sliding window.

    Masks are (batch or 1, heads or 1, queries, keys), or (batch, keys) of padded rows; none stays none where the
    function then does the right thing by itself. `x` says of what batch, dtype and device.
    """
    triangle = masks.causal and queries > 1
    if mask is None and front.full and (masks.kind == "padding" or not triangle):
        return None
    if mask is None:
        mask = unmasked(masks, triangle, x, queries, keys)
    if mask.dim() == 2:
        return torch.cat([front.on.expand(len(mask), -1).to(mask.dtype), mask], 1)
    rows = max(len(mask), len(front.on))
    more = spelt(front.on[:, None, None, :], mask.dtype).expand(rows, mask.shape[1], mask.shape[2], -1)
    return torch.cat([more, mask[..., :keys].expand(rows, -1, -1, -1)], -1)


def unmasked(masks: Masks, triangle: bool, x: Tensor, queries: int, keys: int) -> Tensor:
    """What no mask stands for. Queries that are fewer than the keys come first: the rest of a static cache is empty."""
    if masks.kind == "padding":
        return torch.ones(len(x), keys, dtype=torch.long, device=x.device)
    seen = torch.ones(queries, keys, dtype=torch.bool, device=x.device)[None, None]
    return spelt(seen.tril() if triangle else seen, x.dtype if masks.kind == "added" else torch.bool)


def spelt(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as it is read: True where seen, or what is added to the scores."""
    if dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def door(module: nn.Module, law: str) -> Door:
    """How a module is entered. Raises InputError where nobody knows."""
    for known in doors:
        if known.fits(module, law):
            return known
    raise InputError(closed("", module))


def closed(path: str, module: nn.Module) -> Problem:
    return Problem(
        f"{frozen_class(module).__name__} computes attention itself instead of looking the function up, so nothing can "
        "be added to it",
        path,
        got=frozen_class(module).__module__,
        fix="choose another method for this family (a prompt: fw.Prompt, or fw.LoRA)"
        if doors
        else "import featherweight.interop first",
    )


def attentions(model: nn.Module, law: str, layers: int | None = None, cross: bool = True) -> list[Attention]:
    """The attention modules of the top `layers` blocks (all where None) of each stack, in order.

    `cross=False` leaves out all but a block's first: a decoder's attention to an encoder. Raises InputError where
    there are none, and where adapters with this law ("past", "attend") cannot act in them.
    """
    there = anatomy(model)
    modules = dict(base_modules(model))
    keys, values = ({(parent(s.path)): s for s in there.sites(role)} for role in ("key", "value"))
    found: list[Attention] = []
    for block in top([path for path, _ in there.blocks], layers):
        paths = dict.fromkeys(parent(s.path) for s in there.sites("query") if s.path.startswith(block + "."))
        of = [Attention(p, modules[p], keys[p], values[p]) for p in paths if p in keys and p in values]
        found += of if cross else of[:1]
    if not found:
        raise InputError(Problem("no attention with keys and values of its own", type(model).__name__))
    shut = {type(a.module): closed(a.path, a.module) for a in found if not any(d.fits(a.module, law) for d in doors)}
    raise_all(shut.values())
    return found


def top(blocks: Sequence[str], layers: int | None) -> list[str]:
    """The last `layers` blocks of each stack (an encoder's, a decoder's)."""
    stacks: dict[str, list[str]] = {}
    for path in blocks:
        stacks.setdefault(parent(path), []).append(path)
    return [path for of in stacks.values() for path in (of if layers is None else of[max(len(of) - layers, 0) :])]


def parent(path: str) -> str:
    return path.rpartition(".")[0]

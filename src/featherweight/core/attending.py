"""The attention function is a host: prefixes and gated prompts act on queries, keys and values, whatever computes them.

    module.forward ── q, k, v, mask ──►  attend(…)  ──►  attention function on [K; k], [V; v], [1; mask]

An adapter on an attention module declares

* `past() -> K, V`, (n, kv_heads · head_dim) each: keys and values that every query of its rows sees, before the real
  ones. Rows of one batch may bring different numbers of them: they are padded on the left and masked.
* `attend(base, q, k, v, mask, **kwargs)`: middleware around the function itself; `base(...)` gives (output, weights),
  `base.host.module` is the module. q is (batch, heads, time, head_dim), the output (batch, time, heads, head_dim).

Nothing virtual enters the KV cache, and no global or config changes: the module's own forward runs over a view of the
module that names another function (`doors`: interop knows how a library's modules are entered).
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

    def fits(self, module: nn.Module) -> bool:
        """Whether the module looks its attention function up, so that another can be put in its place."""

    def opened(self, host: Any, groups: Sequence[Group]) -> nn.Module:
        """A view of the host whose attention function is `attended` with these groups."""


doors: list[Door] = []


@dataclass(frozen=True)
class Front:
    """The virtual keys and values of a batch, (1 or batch, kv_heads, n, head_dim), the shorter padded on the left.

    `on` (1 or batch, n): which of them a row has; `full`: every row has all.
    """

    keys: Tensor
    values: Tensor
    on: Tensor
    full: bool

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[K; k], [V; v]."""
        rows = len(k)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), k], 2),
            torch.cat([self.values.expand(rows, -1, -1, -1), v], 2),
        )


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
        view = door(host).opened(host, groups)
        view.__dict__["frozen_class"] = host.frozen_class
        around = [(rows, tuple(a for a in stack if not isinstance(a, AtAttention))) for rows, stack in groups]
        return through(view, around, args, kwargs)


class Function:
    """The attention function of one call, in the shape of a host."""

    def __init__(self, module: Any, run: Callable[..., Any], causal: bool, kind: str):
        """`causal`: what the function assumes without a mask; `kind` of its masks: "bool", "float" or "padding"."""
        self.module, self.run, self.causal, self.kind = module, run, causal, kind
        self.frozen_class = Function

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return self.run(self.module, q, k, v, mask, **kwargs)


def attended(
    function: Function, groups: Sequence[Group], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function with the groups' adapters: (output, weights of the real keys or None)."""
    front = lay(groups, k, v)
    n = 0 if front is None else front.on.shape[1]
    if front is not None:
        mask = widened(mask, front, q, k, function)
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


def lay(groups: Sequence[Group], k: Tensor, v: Tensor) -> Front | None:
    """The virtual keys and values of all rows; None for none at all."""
    each = [[a.past() for a in stack if getattr(a, "past", None)] for _, stack in groups]
    sizes = [sum(len(K) for K, _ in of) for of in each]
    n = max(sizes)
    if not n:
        return None
    keys, values = (torch.stack([ended([p[j] for p in of], n, x) for of in each]) for j, x in enumerate((k, v)))
    if len(groups) == 1:
        return Front(keys, values, torch.ones(1, n, dtype=torch.bool, device=k.device), True)
    numbered = [(rows, torch.full_like(rows, i)) for i, (rows, _) in enumerate(groups) if rows is not None]
    owner = torch.cat([i for _, i in numbered])[torch.cat([rows for rows, _ in numbered]).argsort()]  # (batch,)
    lengths = torch.tensor(sizes, device=k.device)[owner]
    on = torch.arange(n, device=k.device) >= n - lengths[:, None]
    return Front(keys[owner], values[owner], on, min(sizes) == n)


def ended(parts: Sequence[Tensor], n: int, x: Tensor) -> Tensor:
    """The parts (·, kv_heads · head_dim) one after the other at the end of n places: (kv_heads, n, head_dim)."""
    heads, size = x.shape[1], x.shape[3]
    whole = torch.cat([x.new_zeros(0, heads * size), *(p.to(x.dtype) for p in parts)])
    return F.pad(whole, (0, 0, n - len(whole), 0)).view(n, heads, size).transpose(0, 1)


def widened(mask: Tensor | None, front: Front, q: Tensor, k: Tensor, function: Function) -> Tensor | None:
    """The mask with the virtual keys in front, which every query of their rows sees, also past a sliding window.

    Masks are (batch or 1, heads or 1, queries, keys), True or 0 where seen, or (batch, keys) of a padded batch; none
    stays none where the function then does the right thing by itself.
    """
    triangle = function.causal and q.shape[2] > 1
    if mask is None and front.full and (function.kind == "padding" or not triangle):
        return None
    if mask is None:
        mask = unmasked(q, k, triangle, function.kind)
    on = front.on
    if mask.dim() == 2:
        return torch.cat([on.expand(len(mask), -1).to(mask.dtype), mask], 1)
    rows = max(len(mask), len(on))
    more = on[:, None, None, :] if mask.dtype == torch.bool else added(on[:, None, None, :], mask.dtype)
    more = more.expand(rows, mask.shape[1], mask.shape[2], -1)
    return torch.cat([more, mask[..., : k.shape[2]].expand(rows, -1, -1, -1)], -1)


def unmasked(q: Tensor, k: Tensor, triangle: bool, kind: str) -> Tensor:
    """What no mask stands for. Queries that are fewer than the keys come first: the rest of a static cache is empty."""
    if kind == "padding":
        return torch.ones(len(k), k.shape[2], dtype=torch.long, device=q.device)
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)[None, None]
    seen = seen.tril() if triangle else seen
    return added(seen, q.dtype) if kind == "float" else seen


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added to the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def door(module: nn.Module) -> Door:
    """How a module is entered. Raises InputError where nobody knows."""
    for known in doors:
        if known.fits(module):
            return known
    raise InputError(closed("", module))


def closed(path: str, module: nn.Module) -> Problem:
    return Problem(
        f"{frozen_class(module).__name__} computes attention itself instead of looking the function up, so nothing can "
        "be added to its keys and values",
        path,
        got=frozen_class(module).__module__,
        fix="choose another method for this family (a prompt: fw.Prompt, or fw.LoRA)"
        if doors
        else "import featherweight.interop first",
    )


def attentions(model: nn.Module, layers: int | None = None, cross: bool = True) -> list[Attention]:
    """The attention modules of the top `layers` blocks (all where None) of each stack, in order.

    `cross=False` leaves out all but a block's first: a decoder's attention to an encoder. Raises InputError where
    there are none, and where their functions cannot be reached.
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
    shut = {type(a.module): closed(a.path, a.module) for a in found if not any(d.fits(a.module) for d in doors)}
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

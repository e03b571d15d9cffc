"""Tensors that stay in their file: each is read when it is used, and gone with its last use.

    model.layers.0.mlp.up_proj.weight   ->   a Parameter with shape and dtype, without memory
    x @ weight.T                        ->   read, multiplied, forgotten

What only moves or joins tensors (casts, stacks, parts) stays in the file as well: transformers' conversions of a
checkpoint do, in reading and in writing. The last tensor that was read is kept, for whoever asks twice. None is ever
written to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from featherweight.core.errors import InputError, Problem

aten = torch.ops.aten
AGAIN = {aten.alias.default, aten.detach.default}
MOVED = {
    aten._to_copy.default, aten.stack.default, aten.cat.default, aten.transpose.int, aten.permute.default,
    aten.view.default, aten._unsafe_view.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
PARTS = {aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int}


@dataclass(frozen=True, eq=False)
class Source:
    """How a tensor is had. `kept`: worth keeping until another one is read."""

    make: Callable[[], Tensor]
    like: Tensor  # on the meta device
    kept: bool = True
    pick: "Callable[[int], Source] | None" = None  # one of a stack's tensors, where it is had without the others
    kind: torch.dtype | None = None  # what it is in its file, where that is something else
    uncast: "Source | None" = None  # the same in another dtype

    @property
    def stored(self) -> torch.dtype:
        """The dtype that holds what the file has."""
        return self.like.dtype if self.kind is None else self.kind

    def read(self) -> Tensor:
        global last
        if last[0] is not self:
            last = (None, None)  # the old one goes before the new one comes
            made = self.make()
            if not self.kept:
                return made
            last = (self, made)
        assert last[1] is not None
        return last[1]


last: tuple[Source | None, Tensor | None] = (None, None)


class Filed(Tensor):
    """A tensor over a source."""

    source: Source

    @staticmethod
    def __new__(cls, source: Source) -> "Filed":
        like = source.like
        made: Filed = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=torch.device("cpu")
        )
        made.source = source
        return made

    def __init__(self, source: Source): ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Filed({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.numpy:  # goes past the dispatcher
                return args[0].source.read().numpy()
            if func is Tensor.data_ptr:
                return 0
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in AGAIN:
            return Filed(args[0].source)
        if func._schema.is_mutable:
            raise InputError(Problem("a tensor that stays in its file cannot be written", str(func)))
        there = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if (func in MOVED or func in PARTS) and all(isinstance(t, Filed) for t in there) and on_cpu(kwargs):
            if func is aten.select.int and args[0].source.pick and args[1] == 0:
                return Filed(args[0].source.pick(range(len(args[0]))[args[2]]))
            return moved(func, args, kwargs)
        return func(*tree_map_only(Filed, read, args), **tree_map_only(Filed, read, kwargs))


def read(filed: Filed) -> Tensor:
    return filed.source.read()


def near(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """A tensor as it is before it is cast, where it has this dtype there: what goes back into a file as it came."""
    before = tensor.source.uncast if isinstance(tensor, Filed) else None
    return Filed(before) if before is not None and before.like.dtype is kind else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor in memory."""
    return read(tensor) if isinstance(tensor, Filed) else tensor


def on_cpu(options: dict[str, Any]) -> bool:
    return torch.device(options.get("device") or "cpu").type == "cpu"


def moved(func: Any, args: Any, kwargs: Any) -> Any:
    """The same without reading: what comes out, and how it is made."""

    def run(of: Callable[[Filed], Tensor], more: dict[str, Any]) -> Any:
        return func(*tree_map_only(Filed, of, args), **(tree_map_only(Filed, of, kwargs) | more))

    def part(i: int) -> Tensor:
        one: Tensor = run(read, {})[i]
        return one.clone()

    likes = run(lambda t: t.source.like, {"device": "meta"} if "device" in kwargs else {})
    kind = reduce(torch.promote_types, (t.source.stored for t in tree_flatten(args)[0] if isinstance(t, Filed)))
    if isinstance(likes, Tensor):
        uncast = args[0].source if func is aten._to_copy.default else None
        return Filed(Source(lambda: run(read, {}), likes, pick=picking(func, args, kwargs), kind=kind, uncast=uncast))
    return tuple(Filed(Source(partial(part, i), like, kept=False, kind=kind)) for i, like in enumerate(likes))


def picking(func: Any, args: Any, kwargs: Any) -> Callable[[int], Source] | None:
    """How one of a stack's tensors is had alone: of tensors that were stacked, and of what is done to each alike."""
    below, *dims = args
    if func is aten.stack.default and dims in ([], [0]) and not kwargs:
        return lambda i: below[i].source
    parts = below if isinstance(below, list | tuple) else [below]
    each = func is aten._to_copy.default or (func in (aten.cat.default, aten.transpose.int) and dims and min(dims) > 0)
    if not each or any(part.source.pick is None for part in parts):
        return None

    def pick(i: int) -> Source:
        some = [Filed(part.source.pick(i)) for part in parts]
        inner = some if isinstance(below, list | tuple) else some[0]
        found: Filed = func(inner, *(d - 1 for d in dims), **kwargs)
        return found.source

    return pick


def settle(model: nn.Module) -> None:
    """Read every tensor of a model that is still in its file."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in tables:
            for name, tensor in held.items():
                if isinstance(tensor, Filed):
                    there = isinstance(tensor, nn.Parameter)
                    if id(tensor) not in made:
                        dense = whole(tensor)
                        made[id(tensor)] = nn.Parameter(dense, tensor.requires_grad) if there else dense
                    held[name] = made[id(tensor)]


@dataclass(frozen=True)
class Late:
    """A tensor of a file as transformers asks for it; `stored` reads with `[...]`."""

    stored: Any

    def __getitem__(self, _: Any) -> Filed:
        like = torch.empty(self.stored.shape, dtype=self.stored.dtype, device="meta")
        return Filed(Source(lambda: self.stored[...], like))

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.stored.shape

    def get_dtype(self) -> str:
        """What the safetensors library calls it: transformers asks."""
        return str(self.stored.get_dtype())

    def get_shape(self) -> list[int]:
        return list(self.stored.shape)

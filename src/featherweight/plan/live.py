"""What is in memory at every moment of a computation that is run on tensors without storage.

A dispatch mode sees each operation below autograd. The storages of its results count from there on until the last
tensor on them is gone, which is just when the real ones would be freed: what autograd saves, what checkpointing
drops and what a kernel frees early need no rules. Each storage carries the tag of the place it was made in.

What depends on no weight is computed as it is, where it is small: which tokens are pads, which positions carry loss,
how many windows a row has. Operations on the rest whose result depends on values (which token is the likeliest) are
answered as if all of it were true.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from featherweight.core.blank import is_bare
from featherweight.core.flow import grouped
from featherweight.core.replace import HALF

aten = torch.ops.aten
LIKE = {  # attention as a CPU runs it, which torch's counter does not know: counted as elsewhere
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
SMALL = 1 << 22  # elements of a result that is computed rather than only shaped
PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_}


class Live(TorchDispatchMode):
    """Bytes alive by tag, their peak with its tags, and floating-point operations; to be entered inside a
    FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[int, str]] = {}  # storage -> bytes, tag
        self.now: Counter[str] = Counter()
        self.total = self.peak = self.flops = 0
        self.at_peak: Counter[str] = Counter()
        self.products: set[Any] = set()  # shapes of matrix products in 16 bits
        self.tag = "other"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_iter((args, kwargs))):
            out = computed(func, args, kwargs)
        else:
            out = ASSUMED.get(func, func)(*args, **kwargs)
        counted = flops_of(func._overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **kwargs, out_val=out)
        if func._overloadpacket in PRODUCTS and out.dtype in HALF:
            self.products.add((func, *(tuple(a.shape) for a in args if isinstance(a, Tensor))))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self.take(leaf)
        return out

    def take(self, tensor: Tensor, tag: str = "") -> None:
        """Count a tensor's storage, if it is not counted yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.held:
            return
        size, tag = storage.nbytes(), tag or self.tag
        self.held[key] = size, tag
        self.now[tag] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.now.copy()
        finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        size, tag = self.held.pop(key)
        self.now[tag] -= size
        self.total -= size

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Count these storages no longer: their bytes are kept elsewhere."""
        for key in {t.untyped_storage()._cdata for t in tensors}:
            size, tag = self.held[key]
            self.held[key] = 0, tag
            self.now[tag] -= size
            self.total -= size

    def retag(self, tensor: Tensor, tag: str) -> None:
        """Call a counted storage something else from now on."""
        key = tensor.untyped_storage()._cdata
        size, old = self.held[key]
        self.held[key] = size, tag
        self.now[old] -= size
        self.now[tag] += size

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        before, self.tag = self.tag, tag
        try:
            yield
        finally:
            self.tag = before

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.total, self.now.copy()


@cache
def flops_of(packet: Any) -> Callable[..., int] | None:
    """What counts an operation's work, in place or not; None for those that count as free."""
    if packet is aten._grouped_mm:
        return grouped_flops
    known = LIKE.get(packet) or getattr(aten, packet.__name__.removesuffix("_"), packet)
    return flop_registry.get(packet) or flop_registry.get(known)


def grouped_flops(a: Tensor, b: Tensor, *rest: Any, **options: Any) -> int:
    """Each token meets one expert: where a has all experts and b the tokens, each of them meets b's share."""
    return 2 * a.numel() * b.shape[-1] // (len(a) if a.dim() > b.dim() else 1)


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation that no tensor without storage goes into: its real result where that is small, else its shape."""
    try:
        shaped = None if func._schema.is_mutable else func(*args, **kwargs)  # what is written to is there already
    except (DataDependentOutputException, DynamicOutputShapeException):
        shaped = None
    if any(leaf.numel() > SMALL or leaf.device.type != "cpu" for leaf in tree_iter(shaped) if isinstance(leaf, Tensor)):
        return shaped
    with no_dispatch():
        return func(*args, **kwargs)


def all_rows(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """x[mask] as if all of a mask were true that nobody knows; other indexing as it is."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and not is_bare(index) and index.dtype is torch.bool:
            with no_dispatch():
                found += index.nonzero().unbind(1)
        else:
            found.append(index)
    first = found[0] if found else None
    if first is None or first.dtype is not torch.bool or len(found) > 1:
        return aten.index.Tensor(x, found)
    return x.reshape(-1, *x.shape[first.dim() :]).clone()


def picked(x: Tensor, mask: Tensor) -> Tensor:
    """masked_select, as if all of a mask were true that nobody knows."""
    flat = x.expand(mask.shape).reshape(-1)
    if is_bare(mask):
        return flat.clone()
    with no_dispatch():
        count = int(mask.sum())
    return flat[:count].clone()


def put_rows(x: Tensor, indices: list[Tensor | None], values: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x.clone()


def put_rows_(x: Tensor, indices: list[Tensor | None], values: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x


def nonzero(x: Tensor) -> Tensor:
    return torch.empty(x.numel(), x.dim(), dtype=torch.long, device=x.device)


def scalar(x: Tensor) -> Any:
    """A value nobody knows: true, or one."""
    return (x.dtype.is_floating_point and 1.0) or (True if x.dtype is torch.bool else 1)


def same(a: Tensor, b: Tensor) -> bool:
    return True


ASSUMED: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: all_rows,
    aten.index_put.default: put_rows,
    aten.index_put_.default: put_rows_,
    aten._index_put_impl_.default: put_rows_,
    aten.nonzero.default: nonzero,
    aten.masked_select.default: picked,
    aten._local_scalar_dense.default: scalar,
    aten.equal.default: same,
    aten._grouped_mm.default: grouped,
}

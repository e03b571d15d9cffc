"""A module whose weight is kept as codes: its class changes in place, keys of other tensors stay.

    q_proj   Linear         weight (out, in), bias
    q_proj   QuantLinear    codes, absmax, ... (buffers), bias;   .weight decodes

`isinstance(m, nn.Linear)` stays true and whoever reads `m.weight` gets the decoded tensor. What is derived from codes
is never kept in the state dict; what the codes mean is, as `<path>.scheme`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from featherweight.core.base import lend, write
from featherweight.core.encoded import Encoded, encoded, same
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import Host, frozen_class, lent, reclass
from featherweight.core.stack import flipped, stacked
from featherweight.quant.each import codec
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.stored import misfits, written

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> integers as wide


class Quantized:
    """Mixin of every quantized module class: `scheme`, the weight's `shape` and `dtype`, and the packed tensors."""

    plain: ClassVar[type[nn.Module]]  # what the module was, and what it becomes again
    flip: bool = False  # the plain module keeps its weight the other way round, (in, out)
    _buffers: dict[str, Tensor | None]
    scheme: Scheme
    shape: tuple[int, ...]  # (out, in) or (experts, out, in), whatever way round the plain module keeps it
    dtype: torch.dtype  # what `weight` decodes to: follows `.to(dtype)`, which leaves codes and scales alone
    packed_names: tuple[str, ...]

    def __init__(self, *_: Any, **__: Any):
        raise TypeError(f"a {type(self).__name__} is made of a plain module: become_quantized(module, scheme, packed)")

    @property
    def packed(self) -> Packed:
        return {name: self._buffers[name] for name in self.packed_names}  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The decoded weight as the plain module keeps it, made anew at each reading."""
        W = codec(self.scheme, self.shape).decode(self.packed, self.shape, self.dtype)
        return W.mT if self.flip else W

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            fix = "fw.dequantize(model) first"
            raise InputError(Problem(f"cannot be set: it is kept as codes of {self.scheme!r}", name, fix=fix))
        super().register_parameter(name, param)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Packed tensors follow `.to(device)` and never `.to(dtype)`: scales in 16 bits would be other scales."""
        held = self.packed
        self._buffers |= dict.fromkeys(held)
        try:
            super()._apply(fn, recurse)  # type: ignore[misc]
        finally:
            self._buffers |= held
        device = next(iter(held.values())).device
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        for name, tensor in held.items():
            self._buffers[name] = moved(tensor, fn)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        destination[f"{prefix}scheme"] = written(self.scheme, self.shape)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Strict in what codes mean: torch would copy codes of another format, or cast floats to them, silently."""
        record = state_dict.pop(f"{prefix}scheme", None)
        there = {n: state_dict[prefix + n] for n in self.packed_names if prefix + n in state_dict}
        wrong = misfits(self.scheme, self.shape, there, prefix, record)
        if f"{prefix}weight" in state_dict:
            got = f"{prefix}weight, a tensor in floating point"
            fix = "load it before quantizing, or fw.dequantize(model) first"
            wrong.append(Problem("the module keeps codes", prefix[:-1], f"codes of {self.scheme!r}", got, fix))
        error_msgs += map(str, wrong)
        if not wrong:
            super()._load_from_state_dict(  # type: ignore[misc]
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        if record is not None:
            state_dict[f"{prefix}scheme"] = record
            if f"{prefix}scheme" in unexpected_keys:
                unexpected_keys.remove(f"{prefix}scheme")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme!r}"  # type: ignore[misc]


def moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """What a module's `_apply` does to a tensor, but for casts; modules that share the tensor go on sharing it."""
    bits = tensor.view(BITS[tensor.element_size()])  # integers are moved and never cast
    there = fn(bits)
    if there.dtype != bits.dtype:
        there = bits.to(there.device)
    there = there.view(tensor.dtype)
    if tensor.is_meta or there.is_meta or there.device != tensor.device:
        return there
    tensor.data = there
    return tensor


def agreed(module: Any, W: Tensor, scheme: Scheme, packed: Packed) -> Packed:
    """The codes to keep for a module's matrix W (out, in): `packed`, or what its adapters want in their place, which
    may start from what rounding loses (LoftQ). Called before the module becomes a quantized one.
    """
    kept = W

    def rounded(M: Tensor) -> Tensor:
        return scheme.decode(packed if same(M, W) else scheme.encode(M), tuple(W.shape), W.dtype)

    adapters: Any = module.adapters.values() if isinstance(module, Host) else ()
    for adapter in adapters:
        kept = adapter.rounding(kept, rounded)
    return packed if same(kept, W) else scheme.encode(kept)


def become_quantized(
    module: Any, scheme: Scheme, packed: Packed, dtype: torch.dtype | None = None, name: str = "weight"
) -> Any:
    """Make a plain module a quantized one, in place: its weight goes, `packed` (of the matrix (out, in)) comes; of a
    module of experts the weight (experts, out, in) of this name. Gives the module that holds the codes.

    `dtype` is what the weight decodes to, its own where None. Two modules given the same tensors share them.
    Raises InputError for a module that has no quantized class, and for packed tensors that do not fit.
    """
    from featherweight.quant.classes import quantized_class
    from featherweight.quant.experts import become_stack

    W = module._parameters.get(name)
    if W is not None and name in stacked(module):
        raise_all(misfits(scheme, tuple(W.mT.shape if flipped(module) else W.shape), packed, ""))
        return become_stack(module, name, scheme, packed, dtype)
    plain = frozen_class(module)
    cls = quantized_class(plain)
    if cls is None or W is None:
        raise InputError(Problem("this kind of module cannot be quantized", got=plain.__name__))
    shape = tuple(W.shape[::-1] if cls.flip else W.shape)
    raise_all(misfits(scheme, shape, packed, ""))
    del module._parameters["weight"]
    module.scheme, module.shape, module.dtype = scheme, shape, dtype or W.dtype
    module.packed_names = tuple(packed)
    for name, tensor in packed.items():
        module.register_buffer(name, tensor)
    reclass(module, cls)
    return module


def become_plain(module: Any, W: Tensor | None = None) -> None:
    """Make a quantized module a plain one, in place, with the weight W, or with what its codes decode to; frozen."""
    W = module.weight if W is None else W
    for name in module.packed_names:
        del module._buffers[name]
    reclass(module, frozen_class(module).plain)
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters |= {"weight": nn.Parameter(W.detach().contiguous(), requires_grad=False)} | others
    for name in ("scheme", "shape", "dtype", "packed_names"):
        del module.__dict__[name]


def dequantize(model: nn.Module) -> nn.Module:
    """Every quantized module a plain one again, in place, its weight as decoded, and frozen. Adapters stay; modules
    that shared their codes share the weight.
    """
    from featherweight.quant.experts import Experts, codes_of, leave_stack

    for experts in [m for m in model.modules() if isinstance(m, Experts)]:
        for name in codes_of(experts):
            leave_stack(experts, name)
    found = [(m, next(iter(m.packed.values()))) for m in model.modules() if isinstance(m, Quantized)]
    times = Counter(id(codes) for _, codes in found)
    made: dict[int, Any] = {}
    for module, codes in found:
        W = made.get(id(codes))
        become_plain(module, W)
        if times[id(codes)] > 1:
            module._parameters["weight"] = made.setdefault(id(codes), module._parameters["weight"])
    return model


@encoded.register(Quantized)
def known(module: Any) -> Mapping[str, Encoded]:
    if "scheme" not in vars(module):
        return {}
    scheme, shape, dtype, flip = module.scheme, module.shape, module.dtype, module.flip

    def again(W: Tensor) -> Tensor:
        return encoded_again(scheme, W, shape, dtype, flip)

    kept = tuple(module.packed.values())
    return {"weight": Encoded(turned(shape) if flip else shape, dtype, repr(scheme), kept, again)}


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with its last two dimensions exchanged."""
    *lead, out, into = shape
    return (*lead, into, out)


def encoded_again(scheme: Scheme, W: Tensor, shape: tuple[int, ...], dtype: torch.dtype, flip: bool) -> Tensor:
    """decode(encode(W)), W as the plain module keeps it."""
    coder = codec(scheme, shape)
    back = coder.decode(coder.encode(W.mT if flip else W), shape, dtype)
    return back.mT if flip else back


@lend.register(Quantized)
def lend_plain(host: Any, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Over another weight a quantized module runs as its plain class."""
    return lent(host, weights, frozen_class(host).plain)


@write.register(Quantized)
def write_merged(host: Any, name: str, W: Tensor, again: bool = False) -> None:
    """Into floating point, or into codes of the same scheme, where that is asked for."""
    if name != "weight":
        getattr(host, name).data.copy_(W)
    elif again:
        reencode(host, W)
    else:
        become_plain(host, W)


def reencode(module: Any, W: Tensor) -> None:
    """Put W, as the plain module keeps it, into a quantized module as new codes of its scheme."""
    for name, tensor in codec(module.scheme, module.shape).encode(W.mT if module.flip else W).items():
        module._buffers[name] = tensor

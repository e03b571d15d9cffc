"""A module of experts whose 3-d weights are kept as codes: its class changes in place, one module below it a tensor.

    mlp.experts    gate_up_proj (E, 2 I, H), down_proj (E, H, I)
    mlp.experts    coded.gate_up_proj.codes (E, ...), .absmax, ...; coded.down_proj.codes, ...

Whoever reads `experts.gate_up_proj` gets a tensor that decodes where it is used (`lazy.py`): one expert at a time for
code that goes by experts, as all of transformers' does. No expert that no token was routed to is decoded there.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.base import lend, read, write
from featherweight.core.derived import derive
from featherweight.core.encoded import Encoded, encoded
from featherweight.core.host import frozen_class, reclass
from featherweight.core.stack import flipped, stacked
from featherweight.quant.lazy import Held, Lazy
from featherweight.quant.quantized import Quantized, known, reencode
from featherweight.quant.scheme import Packed, Scheme

HOLDER = "coded"  # the name of what holds the codes in a module of experts


class Stack(Quantized, nn.Module):
    """The codes of one 3-d weight; `shape` is (E, out, in), whatever way round the module of experts keeps it."""

    plain = nn.Module

    def __init__(self, scheme: Scheme, packed: Packed, shape: tuple[int, ...], dtype: torch.dtype, flip: bool):
        nn.Module.__init__(self)
        self.scheme, self.shape, self.dtype, self.flip = scheme, shape, dtype, flip
        self.packed_names = tuple(packed)
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    @property
    def lazy(self) -> Tensor:
        """What the module of experts computes with; in a compiled graph the decoded weight."""
        if torch.compiler.is_compiling():
            return self.weight
        return Lazy(Held(self.scheme, self.packed, self.shape, self.dtype, self.flip))


class Experts:
    """Mixin of modules of experts with codes. `stacks`: all of the 3-d weights, in order, those in floats too; `order`:
    all of its own tensors.
    """

    plain: ClassVar[type[nn.Module]]
    order: ClassVar[tuple[str, ...]]
    stacks: ClassVar[tuple[str, ...]]
    coded: nn.ModuleDict


@cache
def experts_class(cls: Any, order: tuple[str, ...], stacks: tuple[str, ...]) -> Any:
    """The class that a class of experts becomes: made once."""
    there = {name: property(partial(tensor_of, name=name)) for name in stacks}
    maker = partial(experts_class, order=order, stacks=stacks)
    return derive(cls, maker, Experts, plain=cls, order=order, stacks=stacks, **there)


def tensor_of(module: Any, name: str) -> Tensor:
    """A module's own tensor, or one that was lent; else that of its codes."""
    own: Tensor | None = module._parameters.get(name)
    return getattr(module, HOLDER)[name].lazy if own is None else own


def become_stack(module: Any, name: str, scheme: Scheme, packed: Packed, dtype: torch.dtype | None = None) -> Stack:
    """Put codes in place of a 3-d weight of a module, which becomes one of experts with codes; gives their holder."""
    order, names = tuple(module._parameters), tuple(stacked(module))
    W = module._parameters.pop(name)
    flip = flipped(module)
    shape = tuple(W.mT.shape if flip else W.shape)
    if not isinstance(module, Experts):
        module.add_module(HOLDER, nn.ModuleDict())
        reclass(module, experts_class(frozen_class(module), order, names))
    made = Stack(scheme, packed, shape, dtype or W.dtype, flip)
    getattr(module, HOLDER)[name] = made.train(module.training)
    return made


def leave_stack(module: Any, name: str, W: Tensor | None = None) -> None:
    """Make a weight a plain one again, in place: W, or as decoded; frozen. Without codes the module is what it was."""
    held = getattr(module, HOLDER)
    W = held[name].weight if W is None else W
    del held[name]
    own = module._parameters | {name: nn.Parameter(W.detach().contiguous(), requires_grad=False)}
    module._parameters.clear()
    module._parameters.update({n: own[n] for n in type(module).order if n in own})
    if not held:
        delattr(module, HOLDER)
        reclass(module, frozen_class(module).plain)


def codes_of(module: Any) -> dict[str, Stack]:
    """name -> the codes of a module's 3-d weights, but for those that another tensor stands in for."""
    return {n: m for n, m in getattr(module, HOLDER).items() if n not in module._parameters}


@stacked.register(Experts)
def all_stacks(module: Any) -> list[str]:
    return list(module.stacks)


@encoded.register(Stack)
def counted_above(_: Stack) -> Mapping[str, Encoded]:
    """Nothing: its codes are known under the module of experts."""
    return {}


@encoded.register(Experts)
def known_of(module: Any) -> Mapping[str, Encoded]:
    return {name: known(stack)["weight"] for name, stack in codes_of(module).items()}


@read.register(Experts)
def decoded(host: Any, name: str) -> Tensor:
    there = codes_of(host)
    return there[name].weight if name in there else getattr(host, name)


@lend.register(Experts)
def lend_plain(host: Any, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """A tensor of the module's own comes before its codes."""
    before = dict(host._parameters)
    host._parameters.update(weights)

    def back() -> None:
        host._parameters.clear()
        host._parameters.update(before)

    return back


@write.register(Experts)
def write_merged(host: Any, name: str, W: Tensor, again: bool = False) -> None:
    """Into floating point, or into codes of the same scheme, where that is asked for."""
    there = codes_of(host)
    if name not in there:
        getattr(host, name).data.copy_(W)
    elif again:
        reencode(there[name], W)
    else:
        leave_stack(host, name, W)

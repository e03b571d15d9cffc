"""Other libraries' quantized layers as hosts: while adapters are attached, a subclass of theirs computes right.

    bitsandbytes   Linear4bit, Linear8bitLt      codes under `weight`, their scales in `quant_state` or `state`
    torchao        nn.Linear                     codes in a tensor subclass under `weight`

Tensors stay where they are and keys stay what they were; only the class changes, and detach gives it back. What such a
layer computes on a CPU, or wherever gradients are asked for and the library gives none, is y = x Ŵᵀ + b with Ŵ decoded
and dx = g Ŵ; on other devices the library's own kernels run. `opened` says what a layer holds; each library registers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.base import lend, read, write
from featherweight.core.derived import derive
from featherweight.core.encoded import Encoded
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules, frozen_class, lent, reclass
from featherweight.interop.quantized import books
from featherweight.quant.decoded import decoded_linear
from featherweight.quant.scheme import Packed, Scheme


@dataclass(frozen=True)
class Codec:
    """A stateless decoder of another library's tensors; a linear layer over it is computed as over a Scheme."""

    product = Scheme.product
    input_gradient = Scheme.input_gradient

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must decode")


@dataclass(frozen=True, eq=False)
class Opened:
    """What a live layer holds: Ŵ = codec.decode(packed, shape, dtype), (out, in)."""

    codec: Codec
    packed: Packed
    shape: tuple[int, int]
    dtype: torch.dtype  # what it decodes to
    name: str  # of the format, for people
    again: Callable[[Tensor], Tensor]  # what another weight becomes in the same format

    @property
    def weight(self) -> Tensor:
        return self.codec.decode(self.packed, self.shape, self.dtype)


class Library:
    """What is known of one library's live layers; `libraries` holds one of each."""

    def opened(self, module: Any) -> Opened | None:
        """What a module holds, None where it is none of the library's, or not quantized."""
        raise NotImplementedError

    def settle(self, module: Any, dtype: torch.dtype) -> None:
        """Make a module ready before its class changes; `dtype` is the model's."""

    def leave(self, module: Any) -> None:
        """Undo what `settle` left on a module."""

    def pending(self, module: Any) -> bool:
        """Whether a module is the library's and still waits for being quantized."""
        return False

    def runs(self, module: Any, x: Tensor) -> bool:
        """Whether the library's own forward is right for this call."""
        return False

    def compute(self, module: Any, x: Tensor) -> torch.dtype:
        """The dtype of the product."""
        return x.dtype

    def put(self, module: Any, W: Tensor) -> None:
        """Encode W into the module again."""
        refused(W)


def refused(_: Tensor) -> Tensor:
    """Where a library's layers cannot be encoded again from here."""
    fix = "merge into floating point: requantize=False"
    raise InputError(Problem("this library's weights cannot be encoded again", "requantize", fix=fix))


libraries: list[Library] = []
MERGED = "_merged_from_codes"  # on a layer that became plain, until the adapters are off


class Live:
    """Mixin of another library's layer while adapters are attached; `foreign` is its own class."""

    foreign: ClassVar[Any]
    library: ClassVar[Library]
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        if self.library.runs(self, x):
            return self.foreign.forward(self, x)
        held = self.library.opened(self)
        assert held is not None
        y = decoded_linear(x.to(self.library.compute(self, x)), held.packed, held.codec, held.shape, self.bias)  # type: ignore[arg-type]
        return y.to(x.dtype)


@cache
def live_class(cls: Any, number: int) -> Any:
    """The live class of a library's class: made once."""
    return derive(cls, partial(live_class, number=number), Live, foreign=cls, library=libraries[number])


def settle(model: nn.Module) -> None:
    """Before an attach: every quantized layer of another library gets its live class."""
    layers = [(p, m) for p, m in base_modules(model) if isinstance(m, nn.Linear)]
    raise_all(
        Problem("not quantized yet: its library does that when the model is moved", path, "codes", "a plain weight",
                'model.to("cpu"), or another device, first; then attach')
        for path, m in layers if any(library.pending(m) for library in libraries)
    )  # fmt: skip
    dtype = next((p.dtype for p in model.parameters() if type(p) is nn.Parameter and p.is_floating_point()), None)
    for _, module in layers:
        if isinstance(module, Live):
            continue
        for number, library in enumerate(libraries):
            if library.opened(module) is not None:
                library.settle(module, dtype or torch.float32)
                reclass(module, live_class(frozen_class(module), number=number))
                break


def leave(model: nn.Module) -> None:
    """After the last detach: the classes as they were, and transformers told of layers that merging made plain."""
    layers = [m for _, m in base_modules(model)]
    for module in layers:
        if isinstance(module, Live):
            module.library.leave(module)
            reclass(module, module.foreign)
    plain = [m for m in layers if vars(m).pop(MERGED, None)]
    if plain and any(known(m) for m in layers):
        books.skip(model, plain)
    elif plain:
        books.forget(model)


def held(module: Any) -> Opened:
    found = module.library.opened(module)
    assert found is not None
    return found


def known(module: Any) -> Mapping[str, Encoded]:
    """What core is told of a layer, attached to or not."""
    if not isinstance(module, nn.Linear) or type(weight := module._parameters.get("weight")) is nn.Parameter:
        return {}
    there = next((o for library in libraries if (o := library.opened(module)) is not None), None)
    if there is None or weight is None:
        return {}
    beside = [t for t in there.packed.values() if t.data_ptr() != weight.data_ptr()]
    return {"weight": Encoded(there.shape, there.dtype, there.name, (weight, *beside), there.again)}


@read.register(Live)
def decoded(host: Any, name: str) -> Tensor:
    return held(host).weight if name == "weight" else getattr(host, name)


@lend.register(Live)
def lend_plain(host: Any, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Over another weight a live layer runs as nn.Linear."""
    return lent(host, weights, nn.Linear)


@write.register(Live)
def write_merged(host: Any, name: str, W: Tensor, again: bool = False) -> None:
    """Into floating point, as nn.Linear; or into codes of the same format, where that is asked for."""
    if name != "weight":
        getattr(host, name).data.copy_(W)
    elif again:
        host.library.put(host, W)
    else:
        become_linear(host, W)
        vars(host)[MERGED] = True


def become_linear(module: Any, W: Tensor) -> None:
    """Make a layer of another library an nn.Linear with the weight W, in place; what was kept beside it goes."""
    keep = set(vars(nn.Linear(1, 1, device="meta"))) | {"adapters", "switch"}
    for name in [n for n in vars(module) if n not in keep and not n.startswith("_")]:
        del vars(module)[name]
    module._parameters["weight"] = nn.Parameter(W, requires_grad=False)
    reclass(module, nn.Linear)

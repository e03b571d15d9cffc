"""Quantization-aware training: the model runs on the weights that its codes will decode to, while they train.

    W_used = Q(W + Δ)        Q = decode ∘ encode of the scheme, or LSQ's clamp(round(W / s)) s with s learned
    dL/dΔ = dL/dQ inside the range        (straight through)

W is the host's weight as the adapters below leave it and Δ, 0 at the start, trains beside it: all weights train, the
base stays. `weights=False` has no Δ: QAT on top of LoRA trains B and A through the rounding of W + s B A, so that a
later merge into codes is what was trained.
`activations=8` rounds the host's input as well: each token on its own absmax grid, or on a learned one.
`convert(model)` ends it: every host keeps exactly the codes that it trained with. Without a learned scale
`fw.merge`, then `fw.quantize` with the same scheme, comes to the same.
Source: Jacob et al. 2017, arXiv:1712.05877; Esser et al. 2019 (LSQ), arXiv:1902.08153.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.encoded import identity
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve
from featherweight.quant import fields
from featherweight.quant.absmax import Absmax
from featherweight.quant.fake import RoundedRows, fake_quantize
from featherweight.quant.lsq import grid, lsq, lsq_input, packed_at, start
from featherweight.quant.scheme import Packed, Scheme


def int4() -> Scheme:
    return Absmax(bits=4)


@dataclass(frozen=True, repr=False)
class QAT(Method):
    """`scheme` is what the weights will be kept in; `learned_scale` trains the steps of its grid (LSQ); `activations`
    is the bits of the inputs, 0 for floating point; `weights=False` trains only what the adapters below train.
    """

    paper: ClassVar[str] = "Jacob et al. 2017, arXiv:1712.05877; Esser et al. 2019, LSQ, arXiv:1902.08153"
    place: ClassVar[str] = "weights of linear layers, convolutions and embeddings"
    identity: ClassVar[bool] = False
    per_row: ClassVar[bool] = False
    lr: ClassVar[float] = 5e-5
    lr_source: ClassVar[str] = "as full fine-tuning: all weights train"

    scheme: Scheme = field(default_factory=int4)
    learned_scale: bool = False
    activations: int = 0
    weights: bool = True
    targets: Targets = "linear"

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise InputError(Problem("not a scheme", "QAT.scheme", "fw.Absmax(bits=4), ...", repr(self.scheme)))
        flags = (fields.flag(self, "learned_scale"), fields.flag(self, "weights"), self.fitting())
        raise_all(p for found in flags for p in found)
        if self.learned_scale:
            grid(self.scheme, (1, 1))

    def fitting(self) -> Iterable[Problem]:
        if self.activations != 0:
            yield from fields.whole(self, "activations", 2, 8)
        if self.scheme.calibrated:
            yield Problem("it is fitted to data, not to weights that change", "QAT.scheme", got=repr(self.scheme))

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return not self.activations

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return resolve(model, self.targets, ("linear",) if self.activations else ("linear", "conv", "embedding"))

    def shared(self, model: nn.Module) -> dict[Any, nn.Parameter]:
        return {}

    def build(self, site: Site, shared: dict[Any, nn.Parameter]) -> Adapter:
        W: Tensor = site.host.weight
        if not self.weights:
            return FakeQuantized(self, W, None)
        key = (id(identity(site.module, "weight")), "" if site.rows is None else site.role)
        zeros = torch.zeros_like(W, dtype=master(W.dtype), memory_format=torch.contiguous_format)
        return FakeQuantized(self, W, shared.setdefault(key, nn.Parameter(zeros)))  # tied weights have one Δ

    def prepare(self, model: nn.Module, adapters: Adapted, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Learned steps of inputs begin at what the first batch has."""
        if not (self.learned_scale and self.activations):
            return
        batch = next(iter(batches))
        mine = [a for a in adapters.values() if isinstance(a, FakeQuantized)]
        for adapter in mine:
            adapter.sizes = []
        with torch.no_grad():
            model(**batch)
        for adapter in mine:
            adapter.begin()


class FakeQuantized(Adapter):
    """delta (out, in), where the weights train; step (blocks,) and input_step (1,), where learned."""

    delta: nn.Parameter | None
    step: nn.Parameter | None
    input_step: nn.Parameter | None

    def __init__(self, method: QAT, W: Tensor, delta: nn.Parameter | None):
        super().__init__()
        self.scheme, self.bits = method.scheme, method.activations
        self.sizes: list[Tensor] | None = None  # mean |x| of inputs, while they are looked at
        self.register_parameter("delta", delta)
        self.register_parameter("step", nn.Parameter(start(self.scheme, W)) if method.learned_scale else None)
        learned_input = method.learned_scale and method.activations
        first = 2 * 0.8 / (2 ** (self.bits - 1) - 1) ** 0.5 if learned_input else 0.0  # of inputs N(0, 1)
        step = nn.Parameter(torch.full((1,), first, device=W.device)) if learned_input else None
        self.register_parameter("input_step", step)

    def forward(self, base: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        run: Callable[..., Any] = base.using(self.merge(base))
        return run(self.rounded_input(x) if self.bits else x, *args, **kwargs)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": self.rounded(self.source(W)).to(W["weight"].dtype)}

    def source(self, W: Any) -> Tensor:
        """What is rounded, in the wider dtype."""
        return W["weight"] if self.delta is None else W["weight"].to(self.delta.dtype) + self.delta

    def rounded(self, W: Tensor) -> Tensor:
        if self.step is None:
            return fake_quantize(W, self.scheme, W.dtype)
        return lsq(W, self.step.abs(), *grid(self.scheme, tuple(W.shape)))

    def packed(self, W: Tensor) -> Packed:
        """The codes that `rounded(W)` is decoded from."""
        return self.scheme.encode(W) if self.step is None else packed_at(self.scheme, W, self.step.abs())

    def rounded_input(self, x: Tensor) -> Tensor:
        if self.sizes is not None:
            self.sizes.append(x.detach().float().abs().mean())
            return x
        if self.input_step is None:
            return RoundedRows.apply(x, self.bits)
        return lsq_input(x, self.input_step.abs(), self.bits)

    def begin(self) -> None:
        """Start the input's step from what was looked at."""
        if self.sizes and self.input_step is not None:
            mean = torch.stack(self.sizes).mean()
            with torch.no_grad():
                self.input_step.fill_(2 * mean / (2 ** (self.bits - 1) - 1) ** 0.5)
        self.sizes = None

    @property
    def folds(self) -> bool:
        return not self.bits

    def added(self) -> int:
        return sum(p.numel() for p in (self.step, self.input_step) if p is not None)

"""The method contract: a frozen dataclass with hooks, of which only the first two are needed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.noun import Noun
from featherweight.core.site import Site

Adapted = Mapping[str, Adapter]  # path of the host -> its adapter


@dataclass(frozen=True, repr=False)
class Method(Noun):
    """A way to adapt a model. The traits drive the laws, the docs table and the errors; no law has a skip list."""

    paper: ClassVar[str] = ""  # authors, year and where
    place: ClassVar[str] = ""  # where it sits, in words
    mergeable: ClassVar[bool] = True  # folds into plain weights
    identity: ClassVar[bool] = True  # attaching it changes nothing until it is trained
    near: ClassVar[float] = 0.0  # where identity: the largest relative change of the outputs all the same; 0: no bit
    untouched: ClassVar[bool] = True  # the base's tensors are never written while it is attached
    per_row: ClassVar[bool] = True  # may differ from row to row of a batch
    lasting: ClassVar[bool] = True  # belongs to the trained model; False: of use while it trains alone, never exported
    rounded: ClassVar[bool] = False  # makes up for what one number format lost: of no use over another
    lr: ClassVar[float] = 1e-3  # default learning rate with AdamW
    lr_source: ClassVar[str] = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the adapters that it works over: attached before it, and saved and loaded with it."""
        return ()

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        """Where it sits. Raises InputError when that is nowhere, listing what is there."""
        raise NotImplementedError(f"{type(self).__name__} must say where it sits")

    def build(self, site: Site, shared: Any) -> Adapter:
        """The adapter for one site; `site.host` offers weight (out, in), bias, in_features, out_features."""
        raise NotImplementedError(f"{type(self).__name__} must build an adapter")

    def shared(self, model: nn.Module) -> Any:
        """What many sites have in common, made once per attach and handed to every `build`."""
        return None

    def prepare(self, model: nn.Module, adapters: Adapted, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """A start that data or weights decide; called once, before the first step of training."""

    def groups(self, adapters: Adapted, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups over the adapters' trainable parameters; vectors are not decayed."""
        params = {id(p): p for a in adapters.values() for p in a.parameters() if p.requires_grad}.values()
        matrices = [p for p in params if p.dim() > 1]
        vectors = [p for p in params if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": lr},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    def penalty(self, adapters: Adapted) -> Tensor | None:
        """A term added to the loss of each step; None for none."""
        return None

    def after_step(self, adapters: Adapted, step: int, total: int) -> None:
        """Called after each optimizer step while its gradients are there, `step` counted from 1 to `total`."""

    def export(self, adapters: Adapted) -> dict[str, Tensor] | None:
        """What is saved for use where that differs from what resumes; None when the state itself is saved."""
        return None

    def recorded(self, adapters: Adapted) -> "Method":
        """The method as a file records it: with what training decided (ranks) and only the session knew (tokens)."""
        return self

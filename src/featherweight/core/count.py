"""How much trains."""

from dataclasses import dataclass

from torch import nn

from featherweight.core.host import base_parameters, hosts
from featherweight.core.switch import switch_of


@dataclass(frozen=True)
class Trainable:
    """Parameter counts; a tensor shared by several modules counts once, a replaced one is not counted twice."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable over total, in percent."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __repr__(self) -> str:
        return f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {self.share:.4f}"


def trainable(model: nn.Module) -> Trainable:
    """Count what requires grad, and everything the model computes with: the base and its active adapters."""
    base = dict(base_parameters(model))
    active = switch_of(model).on
    on = [host.adapters[n] for _, host in hosts(model) for n in active if n in host.adapters]
    grads = {id(p): p.numel() for m in (model, *on) for p in m.parameters() if p.requires_grad}
    return Trainable(sum(grads.values()), sum(p.numel() for p in base.values()) + sum(a.added() for a in on))

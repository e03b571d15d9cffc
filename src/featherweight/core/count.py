"""How much trains."""

from dataclasses import dataclass

from torch import Tensor, nn

from featherweight.core.encoded import encoded
from featherweight.core.host import base_modules, base_parameters, hosts
from featherweight.core.switch import switch_of


@dataclass(frozen=True)
class Trainable:
    """Parameter counts; a tensor shared by several modules counts once, a replaced one is not counted twice, and one
    kept as codes counts what it decodes to. `codes`: how many of `total` are kept as codes, in `code_bytes` bytes.
    """

    trainable: int
    total: int
    codes: int = 0
    code_bytes: int = 0

    @property
    def share(self) -> float:
        """Trainable over total, in percent."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __repr__(self) -> str:
        counts = f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {self.share:.4f}"
        return f"{counts} || as codes: {self.codes:,} in {self.code_bytes:,} bytes" if self.codes else counts


def trainable(model: nn.Module) -> Trainable:
    """Count what requires grad, and everything the model computes with: the base and its active adapters."""
    base = {id(p): p.numel() for _, p in base_parameters(model)}
    codes, held = compressed(model)
    active = switch_of(model).on
    on = [host.adapters[n] for _, host in hosts(model) for n in active if n in host.adapters]
    grads = {id(p): p.numel() for m in (model, *on) for p in m.parameters() if p.requires_grad}
    total = sum((base | codes).values()) + sum(a.added() for a in on)
    size = sum(t.numel() * t.element_size() for t in held.values())
    return Trainable(sum(grads.values()), total, sum(codes.values()), size)


def compressed(model: nn.Module) -> tuple[dict[int, int], dict[int, Tensor]]:
    """Identity of a tensor kept as codes -> how many parameters it stands for; identity -> tensor, of all kept."""
    found = [e for _, m in base_modules(model) for e in encoded(m).values()]
    counts = {id(e.kept[0]): e.count for e in found}
    return counts, {id(t): t for e in found for t in e.kept}

"""How near an extracted LoRA comes to the fine-tune, and the base without it, on batches."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from featherweight.combine.report import Measured
from featherweight.core.errors import InputError, Problem
from featherweight.core.switch import switch


def measured(tuned: nn.Module, base: nn.Module, name: str, batches: Iterable[Mapping[str, Tensor]]) -> Measured:
    """Logits, and the models' own losses where the batches have labels, averaged over rows. Dropout is off."""
    rows, sums, losses = 0, torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    labelled = True
    modes = [m for model in (tuned, base) for m in model.modules() if m.training]
    tuned.eval()
    base.eval()
    try:
        for batch in batches:
            with torch.no_grad():
                wanted, found = tuned(**batch), base(**batch)
                with switch(base, None):
                    bare = base(**batch)
            n = len(wanted.logits)
            labelled = labelled and "labels" in batch
            rows += n
            sums += n * torch.tensor([*compared(found.logits, wanted.logits), *compared(bare.logits, wanted.logits)])
            if labelled:
                losses += n * torch.tensor([float(o.loss) for o in (found, bare, wanted)], dtype=torch.float64)
    finally:
        for m in modes:
            m.training = True
    if not rows:
        raise InputError(Problem("no row to measure on", "batches", "one batch or more"))
    near, same, far, equal = (sums / rows).tolist()
    three = (losses / rows).tolist() if labelled else [None] * 3
    return Measured(rows, near, far, same, equal, *three)


def compared(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """(mean |difference|, share of equal argmaxes)."""
    difference = (found.float() - wanted.float()).abs().mean()
    return float(difference), float((found.argmax(-1) == wanted.argmax(-1)).float().mean())

"""Do adapters of a higher precision learn what those of 16 bits do not?

bfloat16 has 8 significant bits: a number a is moved only by steps above |a| / 512. AdamW's steps are of the size of
the rate, so that with η below |a| / 512 the entry rests, however long the run. B begins at 0 and moves; A does not.
"""

from typing import Any

import pytest
import torch
from torch import nn

import featherweight as fw


def trained(dtype: torch.dtype, lr: float, steps: int = 100) -> tuple[float, float]:
    """How far the layer stays from one whose weight differs by rank 1 (1: as at the start), and how much of A moved."""
    torch.manual_seed(5)
    layer = nn.Sequential(nn.Linear(24, 24, bias=False))
    x = torch.randn(96, 24)
    with torch.no_grad():
        wanted = layer(x) + 0.05 * x @ torch.outer(torch.randn(24), torch.randn(24))
        start = float((layer(x) - wanted).square().mean())
    fw.attach(layer, fw.LoRA(rank=2, alpha=2, targets="0"), head=False)
    adapter: Any = layer[0].adapters["default"].to(dtype)
    before = adapter.A.detach().clone()
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        left = float((layer(x) - wanted).square().mean()) / start
    return left, float((before != adapter.A).float().mean())


def test_small_steps_leave_16_bit_factors_where_they_are() -> None:
    _, moved = trained(torch.float32, 1e-4)
    _, stuck = trained(torch.bfloat16, 1e-4)
    assert moved == 1
    assert stuck < 0.5


@pytest.mark.parametrize(("lr", "steps", "fine", "coarse"), [(3e-4, 600, 0.12, 0.4), (1e-3, 600, 1e-3, 0.02)])
def test_what_is_left_to_learn_is_less_in_32_bits(lr: float, steps: int, fine: float, coarse: float) -> None:
    assert trained(torch.float32, lr, steps)[0] < fine
    assert trained(torch.bfloat16, lr, steps)[0] > coarse

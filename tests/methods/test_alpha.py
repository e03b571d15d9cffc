"""Is tuning alpha tuning the rate? By the optimizer: what alpha times c and another rate do to s B A, step by step.

    ∂L/∂B = s G Aᵀx, so c s gives c times the gradient. SGD moves s B by s · η · s G: (c s, η / c²) is the same run.
    AdamW divides the gradient's size away and moves s B by s · η: (c s, η / c) is the same run.

Both hold exactly as long as A rests. Where A trains too, its own step of η / c is c times shorter: here 12 steps of
0.02 end a third of the change apart, 12 of 0.001 a thirtieth.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw

STEPS = 12
RULES: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, eps=1e-30, weight_decay=0),
}


def change(rule: str, alpha: float, lr: float, freeze: bool = True) -> Tensor:
    """s B A after the steps, from the same start on the same data."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(40, 10).double(), torch.randn(40, 3).double()
    fw.attach(model, fw.LoRA(rank=4, alpha=alpha, freeze_A=freeze, targets="0"), head=False)
    adapter: Any = model[0].adapters["default"]
    optimizer = RULES[rule]([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return adapter.delta().detach()  # type: ignore[no-any-return]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("rule", "power", "lr"), [("sgd", 2, 0.3), ("adamw", 1, 0.02)])
@pytest.mark.parametrize("c", [0.5, 2, 4])
def test_with_a_at_rest_alpha_is_the_rate(rule: str, power: int, lr: float, c: float) -> None:
    usual = change(rule, 8, lr)
    assert apart(change(rule, 8 * c, lr / c**power), usual) < 1e-9
    assert apart(change(rule, 8 * c, lr), usual) > 0.1  # and it is not that alpha does nothing
    other = 3 - power
    assert apart(change(rule, 8 * c, lr / c**other), usual) > 0.1  # the other optimizer's rule fails


def test_with_a_trained_it_is_so_as_far_as_a_does_not_move() -> None:
    """A share of the change is another one, the smaller the steps are beside A."""
    gaps = []
    for lr in (0.02, 0.005, 0.001):
        usual = change("adamw", 8, lr, freeze=False)
        gaps.append(apart(change("adamw", 16, lr / 2, freeze=False), usual))
        assert gaps[-1] < 0.6 * apart(change("adamw", 16, lr, freeze=False), usual)
    assert 0.3 < gaps[0] < 0.4
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0

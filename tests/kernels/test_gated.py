import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featherweight.kernels import gated
from featherweight.kernels.gated import silu_product


def test_gradcheck_and_no_second_derivative():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(silu_product, (a, b))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(silu_product(a, b).sum(), a, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_as_the_two_functions(dtype):
    a, b, g = torch.randn(3, 64, 33).to(dtype)
    a, b = a.requires_grad_(), b.requires_grad_()
    mine = torch.autograd.grad(silu_product(a, b), (a, b), g)
    assert torch.equal(silu_product(a, b), F.silu(a) * b)
    for one, other in zip(mine, torch.autograd.grad(F.silu(a) * b, (a, b), g), strict=True):
        assert torch.equal(one, other)


def test_keeps_its_two_inputs_alone():
    a, b, kept = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        silu_product(a, b)
    assert set(kept) == {a.data_ptr(), b.data_ptr()}


def test_fits_by_behavior(llama):
    mlp = llama().model.layers[0].mlp
    assert gated.fits(mlp, type(mlp))
    other = llama(hidden_act="gelu").model.layers[0].mlp
    assert not gated.fits(other, type(other))

    class Scaled(type(mlp)):
        def forward(self, x):
            return 2 * super().forward(x)

    class Doubled(type(mlp)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * 2)

    for cls in (Scaled, Doubled):
        mlp.__class__ = cls
        assert not gated.fits(mlp, cls)
    assert not gated.fits(nn.Sequential(), nn.Sequential)

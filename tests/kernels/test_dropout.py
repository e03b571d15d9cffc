import pytest
import torch
from torch import nn

from featherweight.kernels import dropout
from featherweight.kernels.dropout import drop


def test_gradcheck():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def f(x):
        torch.manual_seed(1)
        return drop(x, 0.3)

    assert torch.autograd.gradcheck(f, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_stays(dtype):
    torch.manual_seed(0)
    y = drop(torch.ones(200_000, dtype=dtype), 0.1)
    assert y.dtype == dtype
    assert abs(y.float().mean().item() - 1) < 0.005
    assert len(y.unique()) == 2


def test_keeps_two_bytes_per_element():
    x, kept = torch.randn(64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        drop(x, 0.3)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.int16, 64)]


def test_fits_plain_dropout_that_drops():
    class Mine(nn.Dropout):
        pass

    assert dropout.fits(nn.Dropout(0.1), nn.Dropout)
    for module in (nn.Dropout(0.0), nn.Dropout(1.0), nn.Dropout(0.1, inplace=True), Mine(0.1), nn.Dropout2d(0.1)):
        assert not dropout.fits(module, type(module))

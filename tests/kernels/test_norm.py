import pytest
import torch
from torch import nn

from featherweight.kernels import norm
from featherweight.kernels.norm import rms_norm


def test_gradcheck_and_no_second_derivative():
    torch.manual_seed(0)
    x, w = torch.randn(3, 4, 8, requires_grad=True), torch.randn(8)  # the norm is float32 inside, whatever it is given
    reference = x.detach().double().requires_grad_()
    y = rms_norm(x, w, 1e-5)
    z = w.double() * reference * torch.rsqrt(reference.pow(2).mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-6)
    weights = torch.randn(3, 4, 8)
    (g,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad((z * weights.double()).sum(), reference)
    torch.testing.assert_close(g.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_as_the_modules_own_forward(llama, dtype):
    module = llama(dtype).model.norm.requires_grad_(False)
    x = torch.randn(5, 32).to(dtype).requires_grad_()
    y = rms_norm(x, module.weight, module.variance_epsilon)
    assert torch.equal(y, module(x))
    y.sum().backward()
    mine, x.grad = x.grad, None
    module(x).sum().backward()
    loose = {"rtol": 2e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(mine, x.grad, **loose)


def test_keeps_the_input_and_one_number_per_row():
    x, w, kept = torch.randn(16, 64, requires_grad=True), torch.ones(64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, w, 1e-6)
    assert sorted(t.numel() for t in kept) == [16, 64, 16 * 64]


def test_a_weight_that_trains_is_refused():
    with pytest.raises(ValueError, match="must be frozen"):
        rms_norm(torch.ones(2, 4), torch.ones(4, requires_grad=True), 1e-6)


def test_fits_by_behavior_not_by_name_alone():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    for cls in (LlamaRMSNorm, Qwen3RMSNorm, T5LayerNorm):
        assert norm.fits(cls(8), cls), cls
    offset = GemmaRMSNorm(8)
    nn.init.normal_(offset.weight)
    assert not norm.fits(offset, GemmaRMSNorm)
    assert not norm.fits(nn.LayerNorm(8), nn.LayerNorm)

    class HalvedRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) / 2

    assert not norm.fits(HalvedRMSNorm(8), HalvedRMSNorm)

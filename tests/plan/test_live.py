"""What is counted on tensors without storage is what the same computation counts with them."""

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from featherweight.baselines.flops import counted
from featherweight.plan.live import SMALL, Live


def inputs():
    return [torch.randn(1, 2, 8, 16).requires_grad_() for _ in range(3)]


def attended(q, k, v):
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def test_attention_counts_as_work_forward_and_backward():
    forward = 2 * (2 * 2 * 8 * 8 * 16)  # two heads; scores, then their mix of values
    with FakeTensorMode():
        made = inputs()
        with Live() as live:
            attended(*made)
    assert live.flops == counted(lambda: attended(*inputs()))
    assert live.flops == forward + 5 * forward // 2  # five products in backward: flash attention makes the scores again


def test_what_no_weight_decides_is_computed():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = torch.zeros(2, 3, 4)
        with Live() as live:
            lengths = mask.sum(1)
            assert lengths.tolist() == [2, 1]
            assert weights[mask.bool()].shape == (3, 4)
            assert weights[..., 0].masked_select(mask.bool()).shape == (3,)
            assert torch.full((2,), 3.0).mul_(2).tolist() == [6.0, 6.0]  # in place, once
            assert isinstance(torch.ones(SMALL + 1), FakeTensor)
            assert weights[weights[..., 0] > 0].shape == (6, 4)  # nobody knows: all
    assert live.peak > 0

"""What is counted on tensors without storage is what the same computation counts with them."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from featherweight.baselines.flops import counted
from featherweight.plan.live import Live


def attended(make):
    q, k, v = (make(1, 2, 8, 16).requires_grad_() for _ in range(3))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    y.sum().backward()


def test_attention_counts_as_work_forward_and_backward():
    forward = 2 * (2 * 2 * 8 * 8 * 16)  # two heads; scores, then their mix of values
    with FakeTensorMode(), Live() as live:
        attended(torch.randn)
    assert live.flops == counted(lambda: attended(torch.randn))
    assert live.flops == forward + 5 * forward // 2  # five products in backward: flash attention makes the scores again

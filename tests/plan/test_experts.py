"""Models of experts are planned: torch has no rule for their products in float32 without storage."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import featherweight as fw
from featherweight.core.flow import grouped
from featherweight.plan.live import grouped_flops

MIXTRAL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}  # fmt: skip


@pytest.mark.parametrize("method", [fw.LoRA(), fw.Pfeiffer(reduction=4)], ids=repr)
def test_a_step_of_mixtral_is_planned_and_each_expert_costs_what_its_tokens_ask(method: Any) -> None:
    one, two = (fw.plan(tf.MixtralConfig(**MIXTRAL, num_experts_per_tok=k), method=method, batch=2, length=16)
                for k in (1, 2))  # fmt: skip
    assert two.memory["adapters"] == one.memory["adapters"]
    assert two.train_bytes > one.train_bytes
    tokens = 2 * 16
    forward = 2 * tokens * 3 * 32 * 64 * 2  # three matrices, two layers, one expert more for each token
    assert two.forward_flops - one.forward_flops == forward
    assert forward < two.flops - one.flops <= 2 * forward  # and gradients of inputs, where an adapter is below


def test_the_shapes_are_those_of_the_real_products() -> None:
    x, W = torch.randn(8, 16), torch.randn(3, 16, 4)
    ends = torch.tensor([2, 5, 8], dtype=torch.int32)
    for a, b in ((x, W), (x.T, torch.randn(8, 4)), (W, torch.randn(4, 8))):
        real: Tensor = torch._grouped_mm(a, b, offs=ends)
        assert grouped(a, b, ends).shape == real.shape
    assert grouped(W, W.mT).shape == torch._grouped_mm(W, W.mT).shape == (3, 16, 16)
    assert grouped_flops(x, W) == 2 * 8 * 16 * 4
    assert grouped_flops(x.T, torch.randn(8, 4)) == 2 * 8 * 16 * 4
    assert grouped_flops(W, torch.randn(4, 8)) == 2 * 16 * 4 * 8
    assert grouped_flops(W, W.mT) == 2 * 3 * 16 * 4 * 16

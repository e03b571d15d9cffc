"""Work counted equals work added up by hand, forward and backward."""

import pytest
import torch
from support.choices import rows

import featherweight as fw
from featherweight.baselines import flops
from featherweight.baselines.rule import inference_flops


def test_products_and_attention_by_hand():
    x, W = torch.randn(3, 5), torch.randn(5, 7)
    assert flops.counted(lambda: x @ W) == 2 * 3 * 5 * 7
    assert flops.counted(lambda: torch.zeros(3, 7).addmm_(x, W)) == 2 * 3 * 5 * 7
    assert flops.counted(lambda: torch.zeros(2, 3, 7).baddbmm_(x.expand(2, 3, 5), W.expand(2, 5, 7))) == 4 * 3 * 5 * 7
    q = torch.randn(1, 2, 8, 16)

    def attend():
        with torch.inference_mode():
            torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert flops.counted(attend) == 2 * (2 * 2 * 8 * 8 * 16)  # two heads; scores, then their mix of values


def llama_forward(tokens, seen, model):
    """FLOPs of `tokens` new positions that see `seen` positions, without the output head."""
    c = model.config
    d, f = c.hidden_size, c.intermediate_size
    return c.num_hidden_layers * (2 * tokens * (4 * d * d + 3 * d * f) + 2 * 2 * tokens * seen * d)


def test_a_decoder_by_hand(llama):
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        assert flops.counted(lambda: llama(ids)) == llama_forward(5, 5, llama) + 2 * 5 * 16 * 32
    with torch.inference_mode():
        assert flops.counted(lambda: llama(ids)) == llama_forward(5, 5, llama) + 2 * 5 * 16 * 32


def test_a_text_is_counted_once_for_all_its_choices(llama):
    task, tokenizer = fw.Choices(), llama.tokenizer
    encoded = task.encode_all(rows("a b c d e"), tokenizer, None)
    assert (len(encoded[0].input_ids), [len(c) for c in encoded[0].choices]) == (5, [2, 2])
    found = flops.inference(llama, task, encoded, tokenizer)
    assert llama_forward(5, 5, llama) < found < 1.5 * (llama_forward(5, 5, llama) + 2 * llama_forward(1, 6, llama))
    assert found < 2 * llama_forward(6, 6, llama)


def test_counted_agrees_with_the_rule(llama):
    """2 N a token of the matrices that a token meets; attention comes on top."""
    task = fw.CausalLM(max_new_tokens=1)
    from featherweight.data.types import Example, Turn

    some = [Example("f:1", turns=(Turn("a b c d e f g h a b c d e f g h", False),))]
    encoded = task.ask(some, llama.tokenizer, None)
    found = flops.inference(llama, task, encoded, llama.tokenizer)
    inside = sum(p.numel() for n, p in llama.named_parameters() if "layers" in n and p.dim() == 2)
    least = inference_flops(inside, 16)
    assert least < found < 1.6 * least


def test_training_by_hand(llama):
    """LoRA on the values of both layers: forward with A and B on top; backward no further down than the first value
    projection; full training three times the forward pass."""
    from copy import deepcopy

    from featherweight.data.types import Example, Turn

    task = fw.CausalLM()
    encoded = task.encode_all(
        [Example("f:1", turns=(Turn("a", False), Turn("b c d e f", True)))], llama.tokenizer, None
    )
    tokens = len(encoded[0].input_ids)
    model = deepcopy(llama).requires_grad_(False)
    task.loss(model, batch(encoded))  # finds out once whether the model is causal
    forward = flops.counted(lambda: task.loss(model, batch(encoded)))
    assert forward == llama_forward(tokens, tokens, llama) + 2 * tokens * 16 * 32
    fw.attach(model, fw.LoRA(rank=2, targets="value"))
    with torch.no_grad():
        both = flops.counted(lambda: task.loss(model, batch(encoded)))
    assert both == forward + 2 * 2 * tokens * 2 * (16 + 16)  # two layers; A and B of rank 2
    assert 1.5 * both < flops.training(model, task, encoded, llama.tokenizer) < 2.5 * both
    full = deepcopy(llama).requires_grad_(True)
    assert flops.training(full, task, encoded, llama.tokenizer) == pytest.approx(3 * forward, rel=0.12)


def batch(encoded):
    from featherweight.data.collate import collate

    return collate(encoded, 0).tensors


def test_the_sample_is_spread_over_lengths():
    from featherweight.data.types import Encoded

    made = [Encoded("f", [1] * n, None) for n in range(1, 101)]
    some = flops.sample(made, 10)
    assert [flops.size(r) for r in some] == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]
    assert len(flops.sample(made[:3], 10)) == 3

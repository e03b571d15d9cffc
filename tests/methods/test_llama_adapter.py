"""LLaMA-Adapter by hand, its counts, and where it sits."""

from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import hosts
from featherweight.core.state import adapters


def test_by_hand() -> None:
    """The gated prompt of the top layer, computed beside the model from what reaches its output projection."""
    model = fw.attach(tiny("llama"), fw.LlamaAdapter(tokens=3, layers=1))
    at = model.model.layers[1].self_attn
    seen: dict[str, Any] = {}
    at.register_forward_pre_hook(lambda _, a, k: seen.update(k), with_kwargs=True)
    at.o_proj.register_forward_pre_hook(lambda _, a: seen.update(mixed=a[0]))
    with torch.no_grad():
        at.adapters["default"].adaption_gate.fill_(0.3)
        logits(model, inputs("llama"))
        on = seen["mixed"]
        with fw.switch(model, None):
            logits(model, inputs("llama"))
    x, (cos, sin), P = seen["hidden_states"], seen["position_embeddings"], at.adapters["default"].adaption_prompt[0]
    q = at.q_proj(x).view(2, 7, 4, 8).transpose(1, 2)
    half = torch.cat([-q[..., 4:], q[..., :4]], -1)
    q = q * cos[:, None] + half * sin[:, None]
    k, v = (p(P).view(3, 2, 8).transpose(0, 1).repeat_interleave(2, 0) for p in (at.k_proj, at.v_proj))  # heads, n, 8
    extra = (q @ k.mT / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(on, seen["mixed"] + 0.3 * extra.transpose(1, 2).reshape(2, 7, 32), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5", "bert"])
def test_the_prompts_projections_are_the_frozen_ones(arch: str) -> None:
    """LoRA on the very projections, in the stack or in other rows, does not reach the prompt's keys and values."""
    model = fw.attach(tiny(arch), fw.LlamaAdapter(tokens=2), "gated", head=False)
    disturb(model, 1.0)
    adapter = next(iter(adapters(model, "gated").values()))
    host = next(h for _, h in hosts(model))
    like = torch.zeros(1, {"llama": 2}.get(arch, 4), 1, 8)
    with torch.no_grad():
        before = [adapter.projected(host, *made, like=like) for made in adapter.made_by]
        fw.attach(model, fw.LoRA(rank=2, targets=("key", "value")), "lora", head=False)
        disturb(model, 1.0)
        fw.switch(model, ("gated", "lora"))
        after = [adapter.projected(host, *made, like=like) for made in adapter.made_by]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_starts_as_the_base_to_the_bit() -> None:
    for arch in ("llama", "gpt2", "t5", "bert", "phi3"):
        before = logits(tiny(arch), inputs(arch))
        assert torch.equal(logits(fw.attach(tiny(arch), fw.LlamaAdapter(tokens=2), head=False), inputs(arch)), before)


def test_the_gate_learns_first() -> None:
    model = fw.attach(tiny("llama"), fw.LlamaAdapter(tokens=2))
    model(**inputs("llama")).logits.square().sum().backward()
    for adapter in adapters(model, "default").values():
        assert adapter.adaption_gate.grad.abs().item() > 0
        assert not adapter.adaption_prompt.grad.any()


@pytest.mark.parametrize(
    ("arch", "method", "places", "count"),
    [
        ("llama", fw.LlamaAdapter(tokens=3, layers=1), ["model.layers.1.self_attn"], 3 * 32 + 1),
        ("llama", fw.LlamaAdapter(tokens=3), [f"model.layers.{i}.self_attn" for i in (0, 1)], 2 * (3 * 32 + 1)),
        ("llama", fw.LlamaAdapter(tokens=3, per_head=True), [f"model.layers.{i}.self_attn" for i in (0, 1)], 200),
        ("t5", fw.LlamaAdapter(tokens=3, layers=1),
         [f"{s}.block.1.layer.0.SelfAttention" for s in ("encoder", "decoder")], 2 * (3 * 32 + 1)),
    ],
)  # fmt: skip
def test_places_and_counts(arch: str, method: Any, places: list[str], count: int) -> None:
    model = fw.attach(tiny(arch), method)
    assert list(adapters(model, "default")) == places
    assert fw.trainable(model).trainable == count


@pytest.mark.parametrize(("per_head", "exact"), [(False, 1_228_800 + 30), (True, 1_229_760)])
def test_the_papers_count(per_head: bool, exact: int) -> None:
    """Zhang et al. 2023: 1.2M on LLaMA-7B, 30 of 32 layers; their code has 32 gates a layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    assert fw.trainable(fw.attach(model, fw.LlamaAdapter(per_head=per_head))).trainable == exact


def test_a_gate_for_each_head_is_saved_in_our_own_form(tmp_path: Any) -> None:
    method = fw.LlamaAdapter(tokens=2, per_head=True)
    model = fw.attach(tiny("llama"), method)
    disturb(model, 0.5)
    one = logits(model, inputs("llama"))
    fw.save(model, tmp_path)
    assert torch.equal(logits(fw.load(tiny("llama"), tmp_path), inputs("llama")), one)
    gates = [a.adaption_gate for a in adapters(model, "default").values()]
    with torch.no_grad():
        for gate in gates:
            gate.copy_(gate.mean().expand(4))
    equal = logits(model, inputs("llama"))
    shared = fw.attach(tiny("llama"), fw.LlamaAdapter(tokens=2))
    with torch.no_grad():
        for one_gate, a in zip(gates, adapters(shared, "default").values(), strict=True):
            a.adaption_gate.copy_(one_gate[:1])
        for mine, a in zip(adapters(model, "default").values(), adapters(shared, "default").values(), strict=True):
            a.adaption_prompt.copy_(mine.adaption_prompt)
    torch.testing.assert_close(logits(shared, inputs("llama")), equal)


def test_bad_numbers() -> None:
    with pytest.raises(fw.InputError) as error:
        fw.attach(tiny("llama"), fw.LlamaAdapter(tokens=0, layers=0))
    assert len(error.value.problems) == 2


def test_it_stacks_with_a_prefix() -> None:
    """The gated prompt goes around the function that sees the prefix, whichever was attached first."""
    outs = []
    for order in (("gated", "prefix"), ("prefix", "gated")):
        model = tiny("llama")
        for name, method in (("gated", fw.LlamaAdapter(tokens=2)), ("prefix", fw.Prefix(tokens=2, hidden=0))):
            torch.manual_seed(len(name))
            fw.attach(model, method, name)
            disturb(model, 0.5)
        fw.switch(model, order)
        outs.append(logits(model, inputs("llama")))
    torch.testing.assert_close(outs[0], outs[1])
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]

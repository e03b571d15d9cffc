"""(IA)³, BitFit, LayerNorm, Head and Full by hand."""

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.state import adapters, state


def test_ia3_is_the_published_equation() -> None:
    """softmax(q (l_k ⊙ k)ᵀ) (l_v ⊙ v) and W₂(l_ff ⊙ γ(W₁ x)), written out for one BERT layer, equal to 1e-6."""
    model = fw.attach(tiny("bert"), fw.IA3(), head=False)
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.data.uniform_(0.5, 1.5)
    layer = model.bert.encoder.layer[0]
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        vectors = {k.split(".layer.0.")[1]: v.flatten() for k, v in state(model, "default").items() if ".layer.0." in k}
        l_k, l_v = vectors["attention.self.key.ia3_l"], vectors["attention.self.value.ia3_l"]
        l_ff = vectors["output.dense.ia3_l"]
        fw.detach(model)
        att = layer.attention.self
        q, k, v = att.query(x), att.key(x) * l_k, att.value(x) * l_v
        q, k, v = (t.view(2, 5, 4, 8).transpose(1, 2) for t in (q, k, v))
        context = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32)
        h = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + x)
        inner = nn.functional.gelu(layer.intermediate.dense(h))
        expected = layer.output.LayerNorm(layer.output.dense(l_ff * inner) + h)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_ia3_counts_key_value_and_inner_activation() -> None:
    assert fw.trainable(fw.attach(tiny("llama"), fw.IA3())).trainable == 2 * (16 + 16 + 48)
    assert fw.trainable(fw.attach(tiny("t5"), fw.IA3())).trainable == 2 * (64 + 48) + 2 * (2 * 64 + 48)


def test_ia3_is_never_decayed() -> None:
    method = fw.IA3()
    model = fw.attach(tiny("llama"), method)
    groups = method.groups(adapters(model, "default"), 0.1)
    assert {g["weight_decay"] for g in groups} == {0.0}
    assert sum(p.numel() for g in groups for p in g["params"]) == 160


def test_bitfit_trains_every_bias_of_the_trunk_and_the_subset_by_role() -> None:
    """Per layer q, k, v, o 4 d, feed-forward f + d, norms 2 d (11 d where f = 4 d); then embedding norm and pooler."""
    d, f = 32, 48
    everything = fw.trainable(fw.attach(tiny("bert"), fw.BitFit(), head=False)).trainable
    assert everything == 2 * (4 * d + f + d + 2 * d) + d + d
    subset = fw.attach(tiny("bert"), fw.BitFit(targets=("query", "up")), head=False)
    assert fw.trainable(subset).trainable == 2 * (d + f)
    sliced = fw.attach(tiny("gpt2"), fw.BitFit(targets="query"))
    assert fw.trainable(sliced).trainable == 2 * d


def test_layernorm_tunes_gains_and_shifts_of_all_norms() -> None:
    assert fw.trainable(fw.attach(tiny("bert"), fw.LayerNorm(), head=False)).trainable == 5 * 2 * 32
    assert fw.trainable(fw.attach(tiny("llama"), fw.LayerNorm())).trainable == 5 * 32


def test_vectors_are_not_decayed_by_default() -> None:
    method = fw.Full()
    model = fw.attach(tiny("bert"), method)
    matrices, vectors = method.groups(adapters(model, "default"), 1e-3)
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0.0
    assert all(p.dim() == 1 for p in vectors["params"])


def test_head_is_feature_based_transfer_and_last_unfreezes_blocks() -> None:
    d, f = 32, 48
    assert fw.trainable(fw.attach(tiny("bert"), fw.Head())).trainable == 3 * d + 3
    assert fw.trainable(fw.attach(tiny("roberta"), fw.Head())).trainable == d * d + d + 3 * d + 3
    block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    assert fw.trainable(fw.attach(tiny("bert"), fw.Head(last=1))).trainable == 3 * d + 3 + block
    model = fw.attach(tiny("bert"), fw.Head(last=1))
    assert not [k for k in state(model, "default") if "layer.0" in k]
    with pytest.raises(fw.InputError, match=r"expected 0 to 2.*|got 3"):
        fw.attach(tiny("bert"), fw.Head(last=3))
    from transformers import BertModel

    with pytest.raises(fw.InputError, match="no head"):
        fw.attach(BertModel(tiny("bert").config), fw.Head())


def test_full_counts_every_parameter_once() -> None:
    for arch in ("bert", "gpt2", "t5"):
        model = tiny(arch)
        n = sum(p.numel() for p in model.parameters())
        counts = fw.trainable(fw.attach(model, fw.Full()))
        assert (counts.trainable, counts.total) == (n, n)


def test_heads_are_kept_per_adapter() -> None:
    """Two tasks with different heads on one trunk: switching switches the head as well."""
    model = tiny("bert")
    outs = {}
    for i, name in enumerate(("one", "two")):
        fw.attach(model, fw.LoRA(rank=2), name)
        torch.manual_seed(i)
        for k, p in model.named_parameters():
            if p.requires_grad and "classifier" in k:
                nn.init.normal_(p)
        outs[name] = logits(model, inputs("bert"))
    for name, out in outs.items():
        fw.switch(model, name)
        assert torch.equal(logits(model, inputs("bert")), out)
    assert not torch.allclose(outs["one"], outs["two"])


def test_trainable_prints_its_line() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4))
    assert repr(fw.trainable(model)) == "trainable params: 896 || all params: 22,752 || trainable%: 3.9381"


def test_bitfit_makes_biases_where_there_are_none() -> None:
    model = tiny("llama")
    before = logits(model, inputs("llama"))
    fw.attach(model, fw.BitFit(create=True, targets=("attention", "up")))
    d, kv, f, layers = 32, 16, 48, 2
    assert fw.trainable(model).trainable == layers * (2 * d + 2 * kv + f)
    assert torch.equal(logits(model, inputs("llama")), before)
    disturb(model)
    x = torch.randn(1, 3, d)
    query = model.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(query(x) - x @ query.weight.T, query.adapters["default"].bias.expand(1, 3, d))
    with pytest.raises(fw.NotMergeable):
        fw.merge(model)

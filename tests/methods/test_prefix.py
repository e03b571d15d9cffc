"""Prefix tuning and deep prompts: counts, the re-parameterization, what is saved and what resumes, bad input."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.state import adapters, load_state, state
from featherweight.core.switch import switch_of

PLAIN = fw.Prefix(tokens=3, hidden=0)
MLP = fw.Prefix(tokens=3, hidden=6)


def keys_values(model: nn.Module, name: str = "default") -> list[Any]:
    return [a for a in adapters(model, name).values() if hasattr(a, "past")]


@pytest.mark.parametrize(
    ("arch", "method", "count"),
    [
        ("llama", PLAIN, 2 * 2 * 3 * 16),  # 2 L n d_kv, with 2 of 4 heads for keys and values
        ("gpt2", PLAIN, 2 * 2 * 3 * 32),
        ("t5", PLAIN, 2 * 6 * 3 * 32),  # encoder, decoder and cross-attention
        ("llama", fw.Prefix(tokens=3, hidden=0, layers=1), 2 * 3 * 16),
        ("t5", fw.Prefix(tokens=3, hidden=0, layers=1), 2 * 3 * 3 * 32),  # of each stack
        ("llama", MLP, 3 * 32 + (32 * 6 + 6) + 2 * (6 * 32 + 32)),  # n d + (d m + m) + L (m 2 d_kv + 2 d_kv)
        ("bert", fw.DeepPrompt(tokens=5), 2 * 2 * 5 * 32 + 32 * 3 + 3),  # and the head
    ],
)
def test_counts(arch: str, method: Any, count: int) -> None:
    model = tiny(arch)
    base = sum(p.numel() for p in model.parameters())
    made = fw.trainable(fw.attach(model, method))
    assert (made.trainable, made.total) == (count, base + count - (99 if arch == "bert" else 0))  # a head is replaced


def meta(kind: str, **shape: Any) -> nn.Module:
    import transformers

    cls = getattr(transformers, kind)
    with torch.device("meta"):
        return cls(cls.config_class(**shape))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("tokens", "exact"), [(8, 18_874_368), (2, 4_718_592), (4, 9_437_184), (32, 75_497_472)])
def test_prefix_layer_of_gpt3(tokens: int, exact: int) -> None:
    """Hu et al. 2021, tables 4 and 15: L d (l_p + l_i) with as many infix as prefix tokens is our 2 L n d."""
    model = meta("GPT2Model", n_embd=12288, n_layer=96, n_head=96, n_positions=2048)
    assert fw.trainable(fw.attach(model, fw.Prefix(tokens=tokens, hidden=0))).trainable == exact


def test_prefix_of_t0_3b() -> None:
    """Liu et al. 2022 (T-Few), 576K: two tokens in each of 24 x 3 attentions of 2048-wide keys."""
    shape = {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "d_kv": 64}
    model = meta("T5ForConditionalGeneration", **shape)
    assert fw.trainable(fw.attach(model, fw.Prefix(tokens=2, hidden=0))).trainable == 589_824


def test_the_count_is_pefts() -> None:
    from peft import PrefixTuningConfig, get_peft_model

    for arch, task in (("llama", "CAUSAL_LM"), ("gpt2", "CAUSAL_LM"), ("bert", "SEQ_CLS")):
        config = PrefixTuningConfig(task_type=task, num_virtual_tokens=5)
        theirs = get_peft_model(tiny(arch), config).get_nb_trainable_parameters()[0]
        assert fw.trainable(fw.attach(tiny(arch), fw.DeepPrompt(tokens=5))).trainable == theirs


def test_the_mlp_by_hand() -> None:
    model = fw.attach(tiny("llama"), MLP)
    first, second = keys_values(model)
    assert first.source is second.source
    E, W, b = first.source.embedding, first.source.linear.weight, first.source.linear.bias
    P = (E @ W.T + b).tanh() @ second.linear.weight.T + second.linear.bias  # (n, 2 d_kv)
    torch.testing.assert_close(torch.cat(second.past(), 1), P)


def test_all_of_the_mlp_learns_and_is_stored_once() -> None:
    model = fw.attach(tiny("llama"), MLP)
    model(**inputs("llama")).logits.square().sum().backward()
    named = state(model, "default")
    assert len([k for k in named if k.endswith("source.embedding")]) == 1
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == len(named) == 7
    assert all(g is not None and g.abs().max() > 0 for g in grads)


def test_saved_for_use_without_the_mlp_resumed_with_it(tmp_path: Any) -> None:
    model = fw.attach(tiny("llama"), MLP)
    disturb(model)
    whole = logits(model, inputs("llama"))
    fw.save(model, tmp_path)
    used = fw.load(tiny("llama"), tmp_path)
    assert switch_of(used).attached["default"].method == PLAIN
    torch.testing.assert_close(logits(used, inputs("llama")), whole, atol=1e-6, rtol=1e-6)
    resumed = fw.attach(tiny("llama"), MLP)
    load_state(resumed, "default", state(model, "default"))
    assert torch.equal(logits(resumed, inputs("llama")), whole)
    assert keys_values(resumed)[0].source is keys_values(resumed)[1].source


def test_copies_are_independent_and_keep_the_shared_half() -> None:
    model = fw.attach(tiny("t5"), MLP)
    disturb(model)
    before = logits(model, inputs("t5"))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, inputs("t5")), before)
        assert len({id(a.source) for a in keys_values(other)}) == 1
        assert keys_values(other)[0].source is not keys_values(model)[0].source
        disturb(other)
        assert torch.equal(logits(model, inputs("t5")), before)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(arch: str, reentrant: bool) -> None:
    """Nothing of a prefix lies in a cache, which transformers drops while it checkpoints."""
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = fw.attach(tiny(arch), MLP, head=False).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
            if hasattr(m, "dropout") and isinstance(m.dropout, float):
                m.dropout = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        model(**inputs(arch)).logits.square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    for k, g in grads[0].items():
        assert (grads[1][k] - g).abs().max() <= 1e-5 * max(1.0, float(g.abs().max()))


@pytest.mark.parametrize("method", [PLAIN, fw.LlamaAdapter(tokens=2)])
def test_compiles_whole(method: Any) -> None:
    model = fw.attach(tiny("llama"), method)
    disturb(model)
    before = logits(model, inputs("llama"))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs("llama"), use_cache=False).logits, before, atol=1e-5, rtol=1e-5)


def test_a_decoder_that_classifies_reads_its_last_token() -> None:
    """Padded on either side, as without padding."""
    model = fw.attach(tiny("llama", task="classify"), fw.DeepPrompt(tokens=4))
    disturb(model, 0.5)
    ids = inputs("llama")["input_ids"]
    alone = logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for gap in ((0, 3), (3, 0)):
        batch = {
            "input_ids": nn.functional.pad(ids, gap),
            "attention_mask": nn.functional.pad(torch.ones_like(ids), gap),
        }
        torch.testing.assert_close(logits(model, batch), alone, atol=1e-5, rtol=1e-5)


def test_outputs_have_the_inputs_length() -> None:
    model = fw.attach(tiny("llama"), PLAIN)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs("llama"), output_attentions=True, output_hidden_states=True, use_cache=True)
    assert {tuple(w.shape) for w in out.attentions} == {(2, 4, 7, 7)}
    assert all((w.sum(-1) < 1).all() for w in out.attentions)  # the rest of it went to the prefix
    assert {h.shape[1] for h in out.hidden_states} == {7}
    assert out.past_key_values.get_seq_length() == 7
    assert model(**inputs("llama"), return_dict=False)[0].shape == (2, 7, 99)


def test_a_static_cache_is_as_good_as_any() -> None:
    model = fw.attach(tiny("llama"), PLAIN)
    disturb(model, 0.5)
    ids = inputs("llama")["input_ids"]
    told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **told)
    static = model.generate(
        ids, attention_mask=torch.ones_like(ids), cache_implementation="static", disable_compile=True, **told
    )
    assert torch.equal(static, plain)


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_fused_modules_keep_their_prefixes(arch: str) -> None:
    """Training puts fused classes under the hosts, before an attach or after it."""
    from featherweight.kernels.fuse import fuse

    outs = []
    for first in (False, True):
        torch.manual_seed(0)
        model = tiny(arch)
        if first:
            fuse(model)
        fw.attach(model, PLAIN, head=False)
        disturb(model)
        outs.append(logits(model, inputs(arch)))
        assert fuse(model) or first
        assert torch.equal(logits(model, inputs(arch)), outs[-1])
        model.train()
        model(**inputs(arch)).logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert torch.equal(outs[0], outs[1])


def test_a_bf16_base_has_prefixes_in_fp32() -> None:
    model = fw.attach(tiny("llama", torch.bfloat16), MLP)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(**inputs("llama")).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (fw.Prefix(tokens=0), "method.tokens: out of range; expected at least 1; got 0"),
        (fw.Prefix(hidden=-1), "method.hidden: out of range"),
        (fw.DeepPrompt(layers=0), "method.layers: out of range"),
    ],
)
def test_bad_numbers(method: Any, what: str) -> None:
    with pytest.raises(fw.InputError, match=what):
        fw.attach(tiny("llama"), method)


def test_all_that_is_wrong_at_once() -> None:
    with pytest.raises(fw.InputError) as error:
        fw.attach(tiny("llama"), fw.Prefix(tokens=0, hidden=-2, layers=-1))
    assert len(error.value.problems) == 3


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(fw.InputError, match="no attention"):
        fw.attach(nn.Sequential(nn.Linear(4, 4)), PLAIN)


def test_no_strength_and_no_merge() -> None:
    model = fw.attach(tiny("llama"), PLAIN, "a")
    with pytest.raises(fw.InputError, match="no strength"):
        fw.switch(model, {"a": 0.5})
    with pytest.raises(fw.NotMergeable, match="Prefix"):
        fw.merge(model)


def test_flex_attention_is_refused() -> None:
    model = fw.attach(tiny("llama"), PLAIN)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(fw.InputError, match="flex attention"):
        model.model.layers[0].self_attn(
            torch.randn(1, 3, 32), position_embeddings=(torch.ones(1, 3, 8), torch.zeros(1, 3, 8)), attention_mask=None
        )


def test_reordered_upcast_attention_is_refused() -> None:
    model = tiny("gpt2")
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = True
    fw.attach(model, PLAIN)
    logits(model, inputs("gpt2"))  # sdpa does not look at it
    model.set_attn_implementation("eager")
    with pytest.raises(fw.InputError, match="reorder_and_upcast_attn"):
        logits(model, inputs("gpt2"))

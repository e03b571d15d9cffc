"""Every trap that was found on the way, kept as a test: each of these was once silently wrong, somewhere."""

import copy
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import Host, hosts, reclass
from featherweight.core.state import state
from featherweight.core.switch import switch_of

QV = fw.LoRA(rank=2)


def test_accelerate_hooks_keep_an_old_forward_that_must_be_repointed() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = tiny("llama")
    layer = model.model.layers[0].self_attn.q_proj
    add_hook_to_module(layer, ModelHook())
    before = logits(model, inputs("llama"))
    fw.attach(model, fw.LoRA(rank=2, targets=r"layers.0.self_attn.q_proj"))
    disturb(model)
    assert not torch.equal(logits(model, inputs("llama")), before)
    fw.detach(model)
    assert torch.equal(logits(model, inputs("llama")), before)


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(fw.InputError, match=r"attach first, then prepare"):
        fw.attach(nn.Sequential(layer), fw.LoRA(rank=1, targets="linear"))


def test_multihead_attention_never_calls_out_proj() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(fw.InputError, match="without calling it") as error:
        fw.attach(model, fw.LoRA(rank=2, targets=("out_proj", "1")))
    assert "0.out_proj" in str(error.value)


def test_ia3_merges_its_bias() -> None:
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.bias, 0.5)
    model = nn.Sequential(layer)
    fw.attach(model, fw.IA3(targets="0", feedforward=()))
    layer.adapters["default"].ia3_l.data.fill_(2.0)  # type: ignore[index,union-attr]
    fw.merge(model)
    assert torch.equal(layer.bias, torch.full((3,), 1.0))


def test_a_second_attach_neither_freezes_nor_thaws_the_first() -> None:
    model = tiny("llama")
    fw.attach(model, QV, "one")
    fw.attach(model, fw.IA3(), "two", stack=True)
    trains = {k.split("adapters.")[1].split(".")[0] for k, p in model.named_parameters() if p.requires_grad}
    assert trains == {"one", "two"}
    fw.switch(model, "one")
    trains = {k.split("adapters.")[1].split(".")[0] for k, p in model.named_parameters() if p.requires_grad}
    assert trains == {"one"}, "distributed training raises on inactive adapters that require grad"


def test_a_class_change_after_attach_keeps_the_host() -> None:
    class Loud(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    torch.manual_seed(0)
    one, two = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 4)
    torch.manual_seed(1)
    fw.attach(one, fw.LoRA(rank=2, targets="linear"))
    disturb(one)
    reclass(one[0], Loud)
    reclass(two[0], Loud)
    torch.manual_seed(1)
    fw.attach(two, fw.LoRA(rank=2, targets="linear"))
    disturb(two)
    assert torch.equal(one(x), two(x))
    assert isinstance(one[0], Host)
    fw.detach(one)
    assert type(one[0]) is Loud


@pytest.mark.parametrize("arch", ["gpt2", "t5"])
@pytest.mark.parametrize("targets", ["embedding", "head"])
def test_merging_a_tied_matrix_unties_it(arch: str, targets: str, tmp_path: Any) -> None:
    model = tiny(arch)
    tied = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is tied
    fw.attach(model, fw.LoRA(rank=2, targets=targets))
    disturb(model)
    before = logits(model, inputs(arch))
    fw.merge(model)
    torch.testing.assert_close(logits(model, inputs(arch)), before, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, inputs(arch)), before, atol=1e-5, rtol=1e-5)


def test_full_keeps_a_tie() -> None:
    model = tiny("gpt2")
    fw.attach(model, fw.Full())
    assert fw.trainable(model).trainable == sum(p.numel() for p in tiny("gpt2").parameters())
    disturb(model)
    before = logits(model, inputs("gpt2"))
    fw.merge(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    torch.testing.assert_close(logits(model, inputs("gpt2")), before, atol=1e-6, rtol=1e-6)


def test_a_bare_attach_that_hits_nothing_lists_what_is_there() -> None:
    with pytest.raises(fw.InputError) as error:
        fw.attach(tiny("llama"), fw.LoRA(targets=("q_prj", "v_proj", "nonsense")))
    text = str(error.value)
    assert "did you mean 'q_proj'?" in text
    assert "'nonsense' matches none" in text
    assert "model.layers.N.self_attn.q_proj" in text
    assert "v_proj' matches none" not in text


def test_the_same_name_twice_and_names_with_dots_are_errors() -> None:
    model = fw.attach(tiny("llama"), QV, "fr")
    with pytest.raises(fw.InputError, match="attached already"):
        fw.attach(model, QV, "fr")
    with pytest.raises(fw.InputError, match="without a dot"):
        fw.attach(model, QV, "a.b")
    with pytest.raises(fw.InputError, match="not a method"):
        fw.attach(model, fw.LoRA, "x")
    fw.attach(model, QV, "keys")  # a name that a ModuleDict has as a method
    assert set(switch_of(model).attached) == {"fr", "keys"}


def test_adapters_never_become_targets_themselves() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2, targets="linear"), "a")
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), "b")
    assert not [p for p, _ in hosts(model) if "adapters" in p]
    assert len(state(model, "a")) == len(state(model, "b")) == 28


def test_one_switch_for_the_model_though_a_submodule_came_first() -> None:
    model = tiny("llama")
    fw.attach(model.model.layers[0], fw.LoRA(rank=2, targets="linear"), "inner")
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), "outer", stack=True)
    assert len({id(h.switch) for _, h in hosts(model)}) == 1
    assert switch_of(model).active == ("inner", "outer")
    fw.switch(model, "outer")
    assert not [k for k, p in model.named_parameters() if p.requires_grad and "inner" in k]


def test_two_submodules_attached_apart_are_joined_by_the_model() -> None:
    model = tiny("llama")
    fw.attach(model.model.layers[0], fw.LoRA(rank=2, targets="linear"), "zero")
    fw.attach(model.model.layers[1], fw.LoRA(rank=2, targets="linear"), "one")
    fw.attach(model, fw.IA3(), "all", stack=True)
    assert len({id(h.switch) for _, h in hosts(model)}) == 1
    assert set(switch_of(model).attached) == {"zero", "one", "all"}


def test_attach_on_meta_counts_without_memory() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # LLaMA-7B
    fw.attach(model, fw.LoRA(rank=64, targets="linear"))
    assert fw.trainable(model).trainable == 159_907_840
    assert all(p.is_meta for p in model.parameters())


def test_a_change_of_dtype_after_attach_takes_the_adapter_along() -> None:
    model = fw.attach(tiny("llama"), QV)
    disturb(model)
    model.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    before = logits(model, inputs("llama"))
    torch.testing.assert_close(logits(fw.merge(model), inputs("llama")), before, atol=1e-12, rtol=1e-12)


def test_adapters_are_fp32_beside_a_bf16_base_and_work_outside_autocast() -> None:
    model = fw.attach(tiny("llama", torch.bfloat16), fw.LoRA(rank=2, targets="linear"))
    assert {p.dtype for k, p in model.named_parameters() if "adapters" in k} == {torch.float32}
    out = model(**inputs("llama")).logits
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in model.parameters() if p.requires_grad)


def test_resized_embeddings_after_attach() -> None:
    model = fw.attach(tiny("llama"), QV)
    disturb(model)
    before = logits(model, inputs("llama"))
    model.resize_token_embeddings(120, mean_resizing=False)
    torch.testing.assert_close(logits(model, inputs("llama"))[..., :99], before)
    hosted = fw.attach(tiny("llama"), fw.LoRA(rank=2, targets="embedding"))
    hosted.resize_token_embeddings(120, mean_resizing=False)
    with pytest.raises(fw.InputError, match="resize first, then attach"):
        logits(hosted, inputs("llama"))


def test_detach_of_one_name_among_several() -> None:
    model = fw.attach(tiny("llama"), QV, "a")
    disturb(model)
    alone = logits(model, inputs("llama"))
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), "b")
    disturb(model)
    fw.detach(model, "b")
    assert len(list(hosts(model))) == 4
    fw.switch(model, "a")
    assert torch.equal(logits(model, inputs("llama")), alone)
    with pytest.raises(fw.InputError, match=r"did you mean 'a'|choose from a"):
        fw.detach(model, "b")


def test_a_stack_of_names_must_be_known_and_unlike() -> None:
    model = fw.attach(tiny("llama"), QV, "french")
    with pytest.raises(fw.InputError, match="did you mean 'french'"):
        fw.switch(model, ["frnch"])
    with pytest.raises(fw.InputError, match="twice"):
        fw.switch(model, ["french", "french"])
    with pytest.raises(fw.InputError, match="nothing is attached"):
        fw.switch(tiny("llama"), "x")


def test_a_failed_attach_leaves_the_model_as_it_was() -> None:
    model = tiny("llama")
    with pytest.raises(fw.InputError, match="rank out of range"):
        fw.attach(model, fw.LoRA(rank=10_000))
    assert all(p.requires_grad for p in model.parameters())
    assert not list(hosts(model))
    with pytest.raises(fw.InputError, match="unknown init"):
        fw.attach(model, fw.LoRA(init="magic", dropout=2.0))


def test_merge_checks_everything_before_it_touches_a_tensor() -> None:
    model = fw.attach(tiny("llama"), QV)
    disturb(model)
    before = copy.deepcopy(model.state_dict())
    next(h for _, h in hosts(model)).adapters["default"].lora_B.weight.data[0, 0] = float("nan")
    with pytest.raises(fw.FeatherweightError, match="NaN"):
        fw.merge(model)
    assert list(hosts(model))
    base = [k for k in before if "adapters" not in k]
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in base)


def test_static_attributes_of_a_host_are_those_of_its_class() -> None:
    import inspect

    model = tiny("bert")
    fw.attach(model, QV)
    host = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(host, nn.Linear)
    assert type(host).__name__ == "Linear"
    assert str(inspect.signature(type(host).forward)) == str(inspect.signature(nn.Linear.forward))
    assert repr(host).startswith("Linear(")


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_a_head_comes_along_with_every_method_but_never_an_lm_head(arch: str) -> None:
    model = fw.attach(tiny(arch), QV)
    heads = [k for k, p in model.named_parameters() if p.requires_grad and ("classifier" in k or "lm_head" in k)]
    assert heads == (
        ["classifier.adapters.default.weight", "classifier.adapters.default.bias"] if arch == "bert" else []
    )
    bare = fw.attach(tiny(arch), QV, head=False)
    assert not [k for k, p in bare.named_parameters() if p.requires_grad and "classifier" in k]
    if arch == "llama":
        demanded = fw.attach(tiny(arch), QV, head=True)
        assert [k for k, p in demanded.named_parameters() if p.requires_grad and "lm_head" in k]

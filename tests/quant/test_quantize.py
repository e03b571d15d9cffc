"""`fw.quantize`: what becomes codes and what does not, with reasons; nothing changes where something is wrong."""

import copy
from math import prod
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError
from featherweight.core.stack import stacked
from featherweight.quant import NF4, Absmax, Quantized
from featherweight.quant.place import tensor
from featherweight.quant.quantize import quantize
from featherweight.quant.recipe import Recipe, recipes
from featherweight.quant.skip import choose


def held(model: nn.Module) -> set[str]:
    return {tensor(p) for p, m in model.named_modules() if isinstance(m, Quantized)}


@pytest.mark.parametrize(
    "arch", ["bert", "llama", "gpt2", "t5", "mixtral", "vit", "opt", "bloom", "neox", "deberta-v2"]
)
def test_the_linears_of_the_blocks_become_codes(arch: str) -> None:
    model = tiny(arch)
    before, wanted = logits(model, inputs(arch)), {s.path for s in anatomy(model).roles["linear"]}
    wanted |= {f"{p}.{n}" for p, m in model.named_modules() for n in stacked(m) if "mlp" in p}
    report = fw.quantize(model, NF4(block=32))
    assert held(model) == wanted == {layer.path for layer in report.layers}
    assert model.quantization_report is report
    assert all(layer.block is not None and layer.role for layer in report.layers)
    after = logits(model, inputs(arch))
    assert 0 < (after - before).norm() / before.norm() < 0.5
    kept = {s.path for s in report.skipped}
    owners = {p for p, m in model.named_modules() if any(q is not None for q in m._parameters.values())}
    assert kept == owners - wanted  # whatever holds a tensor is in the one list or the other


def test_what_is_kept_says_why() -> None:
    reasons = {s.path: s.reason for s in fw.quantize(tiny("bert"), NF4()).skipped}
    assert reasons["bert.embeddings.word_embeddings"] == "embedding"
    assert reasons["bert.encoder.layer.0.output.LayerNorm"] == "norm"
    assert reasons["classifier"] == "head"
    model = tiny("mixtral")
    total = sum(p.numel() for p in model.parameters())
    report = fw.quantize(model, NF4(), targets="attention")
    experts = {s.path: s.reason for s in report.skipped if ".experts." in s.path}
    assert set(experts.values()) == {"not a target"}
    assert {p.rsplit(".", 1)[1] for p in experts} == {"gate_up_proj", "down_proj"}
    assert sum(s.parameters for s in report.skipped) + sum(prod(x.shape) for x in report.layers) == total


@pytest.mark.parametrize(
    ("skip", "gone"),
    [
        ("down", r"down_proj"),
        ("layers.0", r"layers\.0\."),
        (("query", "up_proj"), "q_proj|up_proj"),
        (".*mlp.*", "mlp"),
    ],
)
def test_skip_takes_roles_names_and_regexes(skip: Any, gone: str) -> None:
    import re

    model = tiny("llama")
    report = fw.quantize(model, NF4(), skip=skip)
    assert held(model)
    assert not [p for p in held(model) if re.search(gone, p)]
    spared = [s for s in report.skipped if s.reason.startswith("skip: ")]
    assert spared
    assert all(re.search(gone, s.path) for s in spared)


def test_targets_and_a_predicate() -> None:
    model = tiny("llama")
    fw.quantize(model, NF4(), targets=["query", "head"])
    assert held(model) == {f"model.layers.{i}.self_attn.q_proj" for i in range(2)} | {"lm_head"}
    fw.quantize(model, Absmax(), targets=lambda path, module: path.endswith("k_proj"))
    assert len(held(model)) == 5
    assert {repr(r.scheme) for r in recipes(model)} == {"NF4()", "Absmax()"}


def test_tied_matrices_are_left() -> None:
    import transformers as hf

    size = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**size, intermediate_size=48, tie_word_embeddings=True))
    report = fw.quantize(model, NF4(), targets=["linear", "head"])
    assert next(s.reason for s in report.skipped if s.path == "lm_head") == "tied to model.embed_tokens"
    assert sum(s.parameters for s in report.skipped) == 99 * 32 + 3 * 32  # the shared table once


def test_some_rows_of_a_fused_projection_cannot_be_quantized_alone() -> None:
    with pytest.raises(InputError, match=r"nothing is left to quantize.*key\+value rows too"):
        fw.quantize(tiny("gpt2"), NF4(), targets="query")
    model = tiny("gpt2")
    fw.quantize(model, NF4(), targets=["query", "key", "value"])
    assert held(model) == {f"transformer.h.{i}.attn.c_attn" for i in range(2)}
    other = tiny("gpt2")
    fw.quantize(other, NF4(), skip="key")
    assert not [p for p in held(other) if p.endswith("c_attn")]


def test_everything_wrong_at_once_and_nothing_changed() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :3] = float("nan")
        model.model.layers[1].self_attn.q_proj.weight[2, 2] = float("inf")
    model.model.layers[1].mlp.gate_proj.weight = nn.Parameter(torch.empty(0, 32))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        fw.quantize(model, NF4())
    said = {p.where: p for p in caught.value.problems}
    assert "3 of 1,536 NaN or inf" in str(said["model.layers.0.mlp.up_proj.weight"])
    assert "1 of 1,024 NaN or inf" in str(said["model.layers.1.self_attn.q_proj.weight"])
    assert "empty tensor" in str(said["model.layers.1.mlp.gate_proj.weight"])
    assert len(said) == 3
    assert not held(model)
    assert all(torch.equal(v, state[k]) or not torch.isfinite(v).all() for k, v in model.state_dict().items())
    assert fw.quantize(model, NF4(), skip=["layers.0.mlp", "layers.1"]).layers  # the way out


def test_entries_that_match_nothing() -> None:
    with pytest.raises(InputError, match=r"'quer' matches nothing.*did you mean 'query'"):
        fw.quantize(tiny("llama"), NF4(), targets="quer")
    with pytest.raises(InputError, match="skip: 'lm_heat' matches nothing"):
        fw.quantize(tiny("llama"), NF4(), skip="lm_heat")
    with pytest.raises(InputError, match="nothing is left to quantize"):
        fw.quantize(tiny("llama"), NF4(), skip="linear")


def test_twice_and_without_memory() -> None:
    model = tiny("llama")
    fw.quantize(model, NF4())
    with pytest.raises(InputError, match=r"nothing is left to quantize.*quantized already: NF4\(\)"):
        fw.quantize(model, Absmax())
    import transformers as hf

    with torch.device("meta"):
        empty = hf.LlamaForCausalLM(tiny("llama").config)
    with pytest.raises(InputError, match=r"without memory.*load_base"):
        fw.quantize(empty, NF4())


def test_adapters_stay_and_train() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    disturb(model)
    effect = logits(model, inputs("llama")) - logits(tiny("llama"), inputs("llama"))
    fw.quantize(model, Absmax())
    with fw.switch(model, None):
        base = logits(model, inputs("llama"))
    assert torch.allclose(logits(model, inputs("llama")) - base, effect, atol=0.05 * float(effect.abs().max()))
    model.train()
    model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads
    assert all(g is not None and g.any() for g in grads)


def test_the_dtype_that_weights_decode_to() -> None:
    model = tiny("llama")
    fw.quantize(model, NF4(), dtype=torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    half = tiny("llama", torch.bfloat16)
    fw.quantize(half, NF4())
    assert half.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_copies_are_independent() -> None:
    model = tiny("llama")
    fw.quantize(model, NF4())
    other = copy.deepcopy(model)
    assert torch.equal(logits(other, inputs("llama")), logits(model, inputs("llama")))
    assert other.quantization_report.to_dict() == model.quantization_report.to_dict()


@pytest.mark.parametrize(
    "given",
    [NF4(block=32), {"type": "nf4", "block": 32}, Recipe(NF4(block=32)), [{"type": "NF4", "block": 32}]],
)
def test_a_recipe_in_every_form(given: Any) -> None:
    assert Recipe.of(given) == (Recipe(NF4(block=32)),)


def test_recipes_are_strict() -> None:
    assert Recipe.of(None) == Recipe.of("none") == ()
    assert Recipe.of({"type": "nf4", "skip": ["down"]}) == (Recipe(NF4(), skip=("down",)),)
    with pytest.raises(InputError, match="did you mean 'nf4'"):
        Recipe.of("nf44")
    with pytest.raises(InputError, match=r"quantize.blok.*did you mean 'block'"):
        Recipe.of({"type": "nf4", "blok": 3})
    with pytest.raises(InputError, match="not a number format"):
        Recipe.of(4)


def test_recipes_of_a_model_choose_the_same_again() -> None:
    for options in ({}, {"skip": "down"}, {"targets": ["attention"]}):
        model = tiny("llama")
        quantize(model, NF4(), **options)
        (recipe,) = recipes(model)
        assert Recipe.of(recipe.to_dict()) == (recipe,)
        assert {p.path for p in choose(tiny("llama"), recipe.targets, recipe.skip).places} == held(model)
    assert recipes(tiny("llama")) == ()

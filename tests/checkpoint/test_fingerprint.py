"""The base's fingerprint: the same for a cast and under adapters; another base is told apart, and by which tensor."""

import time
from typing import Any

import pytest
import torch
from support.models import ARCHITECTURES, disturb, tiny

from featherweight.checkpoint.fingerprint import MANY, Fingerprint, differences, fingerprint, places
from featherweight.core.attach import attach
from featherweight.methods import IA3, Full, LoRA


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_adapters_do_not_matter(arch: str) -> None:
    model = tiny(arch)
    before = fingerprint(model)
    attach(model, LoRA(rank=2, targets="linear"))
    attach(model, Full(), "full")
    attach(model, IA3(), "other")
    disturb(model)
    assert fingerprint(model) == before
    assert Fingerprint(**before.to_dict()) == before


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_is_the_same_base(arch: str, dtype: torch.dtype) -> None:
    saved = fingerprint(tiny(arch))
    assert differences(tiny(arch).to(dtype), saved) == []
    assert differences(tiny(arch), fingerprint(tiny(arch).to(dtype))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_values_are_found_and_named(dtype: torch.dtype) -> None:
    saved = fingerprint(tiny("llama"), name="mine")
    other = tiny("llama").to(dtype)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.05)
    (problem,) = differences(other, saved, name="yours")
    assert "model.layers.1.mlp.down_proj.weight" in problem.what
    assert problem.expected.startswith("LlamaForCausalLM (mine)")
    assert problem.got.startswith("LlamaForCausalLM (yours)")


def test_one_small_step_of_training_is_found() -> None:
    saved = fingerprint(tiny("gpt2"))
    other = tiny("gpt2")
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.add_(1e-6)
    (problem,) = differences(other, saved)
    assert "transformer.h.0.mlp.c_fc.weight" in problem.what


def test_another_class_and_another_shape() -> None:
    (problem,) = differences(tiny("llama"), fingerprint(tiny("gpt2")))
    assert "GPT2LMHeadModel" in problem.expected
    assert "LlamaForCausalLM" in problem.got
    wider: Any = tiny("bert")
    wider.classifier = torch.nn.Linear(32, 4)
    (problem,) = differences(wider, fingerprint(tiny("bert")))
    assert "(in its name or shape) is classifier.bias" in problem.what
    assert differences(wider, fingerprint(tiny("bert"), {"classifier.weight", "classifier.bias"}),
                       {"classifier.weight", "classifier.bias"}) == []  # fmt: skip


def test_an_untied_head_is_another_base() -> None:
    untied: Any = tiny("gpt2")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.clone())
    (problem,) = differences(untied, fingerprint(tiny("gpt2")))
    assert "lm_head.weight" in problem.what


def test_it_is_small_and_fast_on_a_big_base() -> None:
    big = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(8)))
    start = time.perf_counter()
    found = fingerprint(big)
    assert time.perf_counter() - start < 1.0
    assert found.parameters == 8 * 2048**2
    assert len(str(found.to_dict())) < 1000


def through_data(p: torch.Tensor) -> None:
    p.data.mul_(1.5)


def new_data(p: torch.Tensor) -> None:
    p.data = p.data * 1.5


def in_place(p: torch.Tensor) -> None:
    with torch.no_grad():
        p.view(-1)[places(p.numel(), MANY)[5]] += 1


def under_inference(p: torch.Tensor) -> None:
    with torch.inference_mode():
        p.mul_(1.5)


@pytest.mark.parametrize("change", [through_data, new_data, in_place, under_inference], ids=lambda f: f.__name__)
def test_what_is_kept_of_a_tensor_is_never_stale(change: Any) -> None:
    model = tiny("llama")
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(model.model.layers[1].mlp.up_proj.weight)
    (problem,) = differences(model, before)
    assert "model.layers.1.mlp.up_proj.weight" in problem.what


def test_a_merge_is_seen() -> None:
    import featherweight as fw

    model = attach(tiny("llama"), LoRA(rank=2))
    before = fingerprint(model)
    disturb(model)
    assert differences(fw.merge(model), before)

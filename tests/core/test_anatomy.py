"""Roles on every common family, and slices proven by behavior."""

import pytest
import torch
from support.models import DECODERS, inputs, tiny
from support.zoo import REFUSED, ZOO, build

import featherweight as fw
from featherweight.core.anatomy import anatomy, sites
from featherweight.core.host import base_modules
from featherweight.core.targets import resolve

ROLES = ("query", "output", "gate", "up", "down", "norm", "head", "embedding")


@pytest.mark.parametrize("name", list(ZOO))
def test_every_family(name: str) -> None:
    model, config, options, expected = ZOO[name]
    there = anatomy(build(model, config, options))
    assert tuple(len(there.sites(r)) for r in ROLES) == expected
    assert len(there.sites("key")) == len(there.sites("value")) == expected[0]
    assert there.generates == model.endswith(("LM", "ConditionalGeneration", "LMHeadModel"))


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_fused_layout_that_nobody_can_tell_is_refused_only_when_asked_for(name: str) -> None:
    model = build(*REFUSED[name])
    with pytest.raises(fw.InputError, match="cannot tell which rows"):
        fw.attach(model, fw.LoRA(targets="query"))
    fw.attach(model, fw.LoRA(targets="linear"))


def test_dims_of_roles_agree_with_the_config() -> None:
    there = anatomy(tiny("llama"))
    assert [s.host.weight.shape for s in there.sites("query")] == [(32, 32)] * 2
    assert [s.host.weight.shape for s in there.sites("key")] == [(16, 32)] * 2
    assert [s.host.weight.shape for s in there.sites("down")] == [(32, 48)] * 2


@pytest.mark.parametrize("arch", ["gpt2", "neox", "phi3"])
def test_slices_are_proven_by_behavior(arch: str) -> None:
    """Zeroed value rows give a zero context: through the facade, with weights and biases zeroed for real."""
    model = tiny(arch)
    for s in anatomy(model).sites("value"):
        for name in ("weight", "bias"):
            W = s.module._parameters.get(name)
            if W is not None:
                W.data.copy_(s.host.paste(name, W.data, torch.zeros_like(s.host.cut(name, W.data))))
    seen = []
    for s in anatomy(tiny(arch)).sites("output"):
        dict(base_modules(model))[s.path].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**inputs(arch))
    assert len(seen) == 2
    assert not torch.stack(seen).any()


def test_the_probe_catches_a_wrong_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.core import layout, lexicon

    monkeypatch.setattr(layout, "proven", {})
    wrong = {k: (names, "grouped" if how == "blocks" else "blocks") for k, (names, how) in lexicon.FUSED.items()}
    monkeypatch.setattr(lexicon, "FUSED", wrong)
    for arch in ("gpt2", "neox"):
        with pytest.raises(fw.InputError, match="cannot tell which rows"):
            resolve(tiny(arch), "query", ("linear",))


def test_targets_by_role_regex_list_and_predicate() -> None:
    model = tiny("llama")

    def paths(targets: object, kinds: tuple[str, ...] = ("linear",)) -> list[str]:
        return [str(s) for s in resolve(model, targets, kinds)]  # type: ignore[arg-type]

    assert paths("query") == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert paths("q_proj") == paths("query") == paths(r".*q_proj") == paths(r"layers.[01].self_attn.q_proj")
    assert paths(("q_proj", "query")) == paths("query")
    assert len(paths("attention")) == 8
    assert len(paths("mlp")) == 6
    assert paths("linear") == sorted(paths("linear"), key=lambda p: paths(("attention", "mlp")).index(p))
    assert paths(lambda p, m: p.endswith("1.mlp.up_proj")) == ["model.layers.1.mlp.up_proj"]
    assert paths("norm", ("norm",))[-1] == "model.norm"
    assert paths("embedding", ("embedding",)) == ["model.embed_tokens"]
    assert paths("head") == ["lm_head"]
    with pytest.raises(fw.InputError, match="predicate matches none"):
        paths(lambda p, m: False)
    with pytest.raises(fw.InputError, match="not a regex"):
        paths("[")


def test_a_whole_fused_module_swallows_its_slices() -> None:
    sites = resolve(tiny("gpt2"), ("query", "c_attn"), ("linear",))
    assert [(s.path, s.rows) for s in sites] == [
        ("transformer.h.0.attn.c_attn", None),
        ("transformer.h.1.attn.c_attn", None),
    ]


@pytest.mark.parametrize("arch", DECODERS)
def test_anatomy_looks_through_adapters(arch: str) -> None:
    model = tiny(arch)
    before = {r: [str(s) for s in v] for r, v in anatomy(model).roles.items()}
    fw.attach(model, fw.LoRA(targets="linear"))
    assert {r: [str(s) for s in v] for r, v in anatomy(model).roles.items()} == before


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("role", ["linear", "attention", "norm"])
def test_a_role_is_found_alone_as_among_all(arch: str, role: str) -> None:
    model = tiny(arch)
    assert [str(s) for s in sites(model, role)] == [str(s) for s in anatomy(model).sites(role)]


def test_plain_torch_models_have_linears_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2), torch.nn.LayerNorm(2))
    assert [s.path for s in resolve(model, "linear", ("linear",))] == ["0", "2"]
    assert [s.path for s in resolve(model, "norm", ("norm",))] == ["3"]

"""Save, load, save: the same bits; strict about every tensor, about the base, and about the caller's state."""

import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cases import METHODS, meaningless
from support.models import ARCHITECTURES, disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS
from featherweight.core.errors import InputError
from featherweight.core.state import adapters, state
from featherweight.core.switch import switch_of

GRID = [(m, a) for m in METHODS for a in ARCHITECTURES if not meaningless(m, a)]


def made(arch: str, method: Any, name: str = "default", dtype: torch.dtype = torch.float32) -> Any:
    model = fw.attach(tiny(arch, dtype), method, name)
    disturb(model)
    return model


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize(("method", "arch"), GRID)
def test_exact_there_and_back(method: str, arch: str, tmp_path: Path) -> None:
    model = made(arch, METHODS[method])
    fw.save(model, tmp_path / "a")
    chance = torch.random.get_rng_state()
    loaded = fw.load(tiny(arch), tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), chance)
    if METHODS[method].export(adapters(model, "default")) is None:
        assert equal(state(loaded, "default"), state(model, "default"))
        assert torch.equal(logits(loaded, inputs(arch)), logits(model, inputs(arch)))
        assert switch_of(loaded).attached["default"].method == METHODS[method]
    else:  # a re-parameterization is left out: what it gave is stored in its place
        assert (logits(loaded, inputs(arch)) - logits(model, inputs(arch))).abs().max() <= 1e-6
    fw.save(loaded, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / CONFIG).read_bytes() == (tmp_path / "b" / CONFIG).read_bytes()


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [fw.LoRA(rank=3), fw.IA3(), fw.Full()], ids=str)
def test_a_half_precision_base(arch: str, method: Any, tmp_path: Path) -> None:
    model = made(arch, method, dtype=torch.bfloat16)
    fw.save(model, tmp_path)
    loaded = fw.load(tiny(arch, torch.bfloat16), tmp_path)
    assert equal(state(loaded, "default"), state(model, "default"))


def test_slices_of_unequal_scale(tmp_path: Path) -> None:
    """s₂/s₁ = 5/3 has no exact float: B is kept in fp64 and comes back to the bit."""
    model = made("gpt2", fw.LoRA(rank=4, alpha=7, targets=("query", "value")))
    for block in model.transformer.h:
        block.attn.c_attn.adapters["default"].of["value"].scale *= 5 / 3
    before = state(model, "default")
    fw.save(model, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert {t.dtype for k, t in stored.items() if "lora_B" in k} == {torch.float64}
    loaded = tiny("gpt2")
    fw.attach(loaded, fw.LoRA(rank=4, alpha=7, targets=("query", "value")))
    for block in loaded.transformer.h:
        block.attn.c_attn.adapters["default"].of["value"].scale *= 5 / 3
    from featherweight.checkpoint.entry import unpacked
    from featherweight.checkpoint.save import table
    from featherweight.core.state import load_state

    load_state(loaded, "default", unpacked(table(loaded, "default"), stored, WEIGHTS))
    assert equal(state(loaded, "default"), before)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(tiny("gpt2"), str(tmp_path)).eval()
    assert (logits(theirs, inputs("gpt2")) - logits(model, inputs("gpt2"))).abs().max() <= 1e-6


def test_marks_and_stacks(tmp_path: Path) -> None:
    model = made("bert", fw.LoRA(rank=2))
    fw.save(model, tmp_path)
    other = made("bert", fw.BitFit(), "first")
    fw.load(other, tmp_path, "second", stack=True)
    assert switch_of(other).active == ("first", "second")
    assert not any(p.requires_grad for n, p in other.named_parameters() if ".second." in n)
    fw.load(other, tmp_path, "third", train=True)
    assert switch_of(other).active == ("third",)
    assert all(p.requires_grad for n, p in other.named_parameters() if ".third." in n)


def test_several_in_pefts_layout(tmp_path: Path) -> None:
    model = made("llama", fw.LoRA(rank=2))
    fw.attach(model, fw.IA3(), "fr")
    disturb(model)
    fw.save(model, tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.safetensors")) == [
        WEIGHTS,
        f"fr/{WEIGHTS}",
    ]
    both = fw.load(fw.load(tiny("llama"), tmp_path), tmp_path, "fr")
    for name in ("default", "fr"):
        assert equal(state(both, name), state(model, name))
    fw.save(model, tmp_path / "one", "fr")
    assert equal(state(fw.load(tiny("llama"), tmp_path / "one", "x"), "x"), state(model, "fr"))


def test_nothing_or_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to save"):
        fw.save(tiny("bert"), tmp_path)
    with pytest.raises(InputError, match="did you mean 'default'"):
        fw.save(made("bert", fw.LoRA()), tmp_path, "defualt")


def rewritten(folder: Path, change: Any) -> None:
    from featherweight.checkpoint.files import read_tensors

    tensors, metadata = read_tensors(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata)


Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def test_every_tensor_that_is_wrong_is_listed_and_nothing_changes(tmp_path: Path) -> None:
    fw.save(made("llama", fw.LoRA(rank=2)), tmp_path)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_a.weight"] = tensors.pop(Q.format(0, "A"))
        del tensors[Q.format(1, "B")]
        tensors["stray"] = torch.ones(7)
        tensors[Q.format(1, "A")] = torch.ones(2, 31)

    rewritten(tmp_path, damage)
    model = made("llama", fw.IA3(), "before")
    keys, active, out = list(model.state_dict()), switch_of(model).active, logits(model, inputs("llama"))
    with pytest.raises(InputError) as caught:
        fw.load(model, tmp_path)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert f"q_proj.lora_a.weight: misspelt tensor; rename it to {Q.format(0, 'A')}" in text
    assert f"{Q.format(1, 'B')}: missing tensor; expected (32, 2)" in text
    assert "stray: extra tensor; got (7)" in text
    assert f"{Q.format(1, 'A')}: misshapen tensor; expected (2, 32); got (2, 31)" in text
    assert list(model.state_dict()) == keys
    assert switch_of(model).active == active
    assert torch.equal(logits(model, inputs("llama")), out)


def test_values_outside_the_slices(tmp_path: Path) -> None:
    fw.save(made("gpt2", fw.LoRA(rank=2)), tmp_path)
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key][40, 0] = 1.0  # a row of the key

    rewritten(tmp_path, damage)
    with pytest.raises(InputError, match="values outside the slices"):
        fw.load(tiny("gpt2"), tmp_path)


def test_another_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made("llama", fw.LoRA(rank=2))
    fw.save(model, tmp_path)
    other = tiny("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.add_(1e-3)
    with pytest.raises(InputError, match=r"another base.*model\.layers\.0\.mlp\.up_proj\.weight.*strict_base=False"):
        fw.load(other, tmp_path)
    with pytest.raises(
        InputError, match=r"another base.*expected LlamaForCausalLM.*got PhiForCausalLM|got Phi3ForCausalLM"
    ):
        fw.load(tiny("phi3"), tmp_path)
    assert not switch_of(other).attached
    fw.load(other, tmp_path, strict_base=False)
    assert "another base" in caplog.text
    assert equal(state(other, "default"), state(model, "default"))


def test_a_new_head_is_no_other_base(tmp_path: Path) -> None:
    """The base's own head is random where the task is new; the adapter brings the trained one."""
    for number, method in enumerate([fw.LoRA(rank=2), fw.Head(), fw.Full()]):
        model = made("bert", method)
        fw.save(model, tmp_path / str(number))
        other = tiny("bert")
        torch.nn.init.normal_(other.classifier.weight)
        fw.load(other, tmp_path / str(number))
        assert torch.equal(logits(other, inputs("bert")), logits(model, inputs("bert")))


def test_an_edited_config_is_taken_at_its_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fw.save(made("llama", fw.LoRA(rank=2, alpha=4)), tmp_path)
    form = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(form | {"base_model_name_or_path": "me/mine", "revision": "v2"}))
    fw.load(tiny("llama"), tmp_path)
    assert not [r for r in caplog.records if r.name == "featherweight"]
    (tmp_path / CONFIG).write_text(json.dumps(form | {"lora_alpha": 8}))
    loaded = fw.load(tiny("llama"), tmp_path)
    assert "was edited after saving" in caplog.text
    assert loaded.model.layers[0].self_attn.q_proj.adapters["default"].scale == 4


def test_damaged_metadata(tmp_path: Path) -> None:
    fw.save(made("llama", fw.LoRA(rank=2)), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt", "featherweight": '{"format": 1'})
    with pytest.raises(InputError, match="damaged metadata"):
        fw.load(tiny("llama"), tmp_path)
    record = {
        "version": "9",
        "method": {},
        "head": False,
        "task": None,
        "base_path": None,
        "seed": 0,
        "config": "",
        "format": 2,
    }
    base = {"base": "", "parameters": 1, "dtype": "", "names": "", "exact": "", "sample": ""}
    save_file(tensors, tmp_path / WEIGHTS, {"featherweight": json.dumps(record | {"base": base})})
    with pytest.raises(InputError, match=r"written by another version.*format 2"):
        fw.load(tiny("llama"), tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings among the targets make peft ask the hub; nothing here opens a socket."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = made("llama", fw.LoRA(rank=2, targets=("embedding", "query")))
    model.name_or_path = model.config.name_or_path = "someone/somewhere"
    fw.save(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "someone/somewhere"
    fw.load(tiny("llama"), tmp_path)


def test_nothing_is_said_where_nothing_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "featherweight")
    fw.save(made("t5", fw.IA3()), tmp_path)
    fw.load(tiny("t5"), tmp_path)
    assert not [r for r in caplog.records if r.name == "featherweight"]


def test_what_is_loaded_is_the_adapters_own(tmp_path: Path) -> None:
    """Each parameter in memory of its own, also where one tensor of the file holds several of them (fused slices)."""
    model = made("gpt2", fw.LoRA(rank=2, targets=("query", "value")))
    fw.save(model, tmp_path)
    wanted = {k: t.clone() for k, t in state(model, "default").items()}
    other = fw.load(tiny("gpt2"), tmp_path, train=True)
    found = [p for p in other.parameters() if p.requires_grad]
    assert all(p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes for p in found)
    with torch.no_grad():
        for p in found:
            p.add_(1)
    assert all(torch.equal(t, wanted[k] + 1) for k, t in state(other, "default").items())


def test_walks_are_forgotten_after_a_verb(tmp_path: Path) -> None:
    """A module put into the base after a load is there for the next attach."""
    fw.save(made("llama", fw.LoRA(rank=2)), tmp_path)
    model: Any = fw.load(tiny("llama"), tmp_path)
    model.model.layers[0].mlp.extra = torch.nn.Linear(4, 4)
    assert "model.layers.0.mlp.extra" in adapters(fw.attach(model, fw.LoRA(rank=2, targets=("extra",)), "more"), "more")

"""Many adapters in one batch: each row as if it were alone, forward, backward and in generation; hosts called once."""

from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.base import Base
from featherweight.core.host import hosts

MIXED: dict[str, Any] = {
    "low4": fw.LoRA(rank=4),
    "low2": fw.LoRA(rank=2, targets="linear", dropout=0.1),
    "ia3": fw.IA3(),
    "norm": fw.LayerNorm(),
    "bias": fw.BitFit(),
}
ROWS = ["low4", None, ("low2", "ia3"), "norm", "low4", "ia3", ("norm", "low2"), "bias"]


def mixed(arch: str, names: Any = MIXED) -> nn.Module:
    model = tiny(arch)
    for name in names:
        fw.attach(model, MIXED[name], name, head=False)
        disturb(model)
    return model


def rows_of(arch: str) -> list[Any]:
    return [r for r in ROWS if r != "bias" or arch in ("bert", "gpt2")]


def named(arch: str) -> list[str]:
    return [n for n in MIXED if n != "bias" or arch in ("bert", "gpt2")]


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "t5"])
def test_each_row_as_if_alone(arch: str) -> None:
    model, rows = mixed(arch, named(arch)), rows_of(arch)
    batch = inputs(arch, rows=len(rows))
    fw.switch(model, rows=rows)
    together = logits(model, batch)
    for i, row in enumerate(rows):
        fw.switch(model, row)
        alone = logits(model, {k: v[i : i + 1] for k, v in batch.items()})[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_gradients_are_those_of_each_row_alone(arch: str) -> None:
    model, rows = mixed(arch, named(arch)), rows_of(arch)
    batch = inputs(arch, rows=len(rows))
    fw.switch(model, rows=rows)
    model(**batch).logits.square().sum().backward()
    got = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, row in enumerate(rows):
        fw.switch(model, row)
        model(**{k: v[i : i + 1] for k, v in batch.items()}).logits.square().sum().backward() if row else None
    alone = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(alone)
    for k, g in alone.items():
        torch.testing.assert_close(got[k], g, atol=1e-4, rtol=1e-4)


def test_generation_is_the_same() -> None:
    model, rows = mixed("llama", named("llama")), rows_of("llama")
    ids = inputs("llama", rows=len(rows))["input_ids"]
    told: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    fw.switch(model, rows=rows)
    together = model.generate(ids, attention_mask=torch.ones_like(ids), **told)
    beams = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=2, **told)
    for i, row in enumerate(rows):
        fw.switch(model, row)
        one = ids[i : i + 1]
        assert torch.equal(model.generate(one, attention_mask=torch.ones_like(one), **told)[0], together[i])
        assert torch.equal(model.generate(one, attention_mask=torch.ones_like(one), num_beams=2, **told)[0], beams[i])


def test_a_host_runs_once_for_activation_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed("llama", ["low4", "low2", "ia3"])
    fw.switch(model, rows=["low4", "low2", None, "ia3"])
    value = dict(hosts(model))["model.layers.0.self_attn.v_proj"]
    calls: list[int] = []
    plain = value.frozen_class.forward

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        if self is value:
            calls.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(value.frozen_class, "forward", counted)
    logits(model, inputs("llama", rows=4))
    assert calls == [4]


def test_a_base_asked_twice_answers_twice() -> None:

    from featherweight.core.adapter import Adapter

    class Squared(Adapter):
        def forward(self, base: Base, x: Tensor) -> Tensor:
            return base(x + base(x))

    model = nn.Sequential(nn.Linear(5, 5))
    fw.attach(model, fw.LoRA(rank=2, targets="0"), "low")
    fw.attach(model, fw.LoRA(rank=2, targets="0"), "twice")
    disturb(model)
    host: Any = model[0]
    host.adapters["twice"] = Squared()
    fw.switch(model, rows=["low", "twice", None])
    x = torch.randn(3, 5)
    together = model(x)
    for i, row in enumerate(["low", "twice", None]):
        fw.switch(model, row)
        torch.testing.assert_close(together[i], model(x[i : i + 1])[0])


@pytest.mark.parametrize(
    ("rows", "said"),
    [(["low4", "typo"], "typo"), ([], "no rows"), ([("low4", "low4")], "twice"), (["all", "low4"], "row to row")],
)
def test_bad_rows_are_refused_at_once(rows: Any, said: str) -> None:
    model = mixed("llama", ["low4"])
    fw.attach(model, fw.Full(), "all")
    fw.switch(model, "low4")
    with pytest.raises(fw.InputError, match=said):
        fw.switch(model, rows=rows)
    with pytest.raises(fw.InputError, match="give rows alone"):
        fw.switch(model, "low4", rows=["low4"])
    assert logits(model, inputs("llama")).isfinite().all()


def test_rows_must_divide_the_batch_and_heads_must_agree() -> None:
    model = mixed("bert", ["low4"])
    fw.switch(model, rows=["low4", None, None])
    with pytest.raises(fw.InputError, match="do not divide the batch"):
        logits(model, inputs("bert", rows=4))
    with pytest.raises(fw.NotMergeable, match="rows"):
        fw.merge(model)


def test_rows_as_a_context_come_back() -> None:
    model = mixed("llama", ["low4", "ia3"])
    fw.switch(model, rows=["low4", "ia3"])
    together = logits(model, inputs("llama"))
    with fw.switch(model, "ia3"):
        assert not torch.equal(logits(model, inputs("llama")), together)
    assert torch.equal(logits(model, inputs("llama")), together)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert any("low4" in k for k in trained)
    assert any("ia3" in k for k in trained)


@pytest.mark.parametrize("name", ["low2", "ia3", "norm"])
def test_strength(name: str) -> None:
    model, batch = mixed("llama", [name]), inputs("llama")
    full = logits(model, batch)
    fw.switch(model, None)
    plain = logits(model, batch)
    fw.switch(model, {name: 0})
    torch.testing.assert_close(logits(model, batch), plain, atol=0, rtol=0)
    fw.switch(model, {name: 1})
    assert torch.equal(logits(model, batch), full)
    fw.switch(model, {name: 0.5})
    half = logits(model, batch)
    assert not torch.allclose(half, full, atol=1e-4)
    assert not torch.allclose(half, plain, atol=1e-4)
    torch.testing.assert_close(logits(fw.merge(model), batch), half, atol=1e-5, rtol=1e-4)


def test_what_was_planned_in_inference_mode_still_trains() -> None:
    model = mixed("llama", ["low4", "norm"])
    fw.switch(model, rows=["low4", "norm"])
    with torch.inference_mode():
        before = model(**inputs("llama")).logits.clone()
    out = model(**inputs("llama")).logits
    out.square().sum().backward()
    # not to the bit: few rows of which nothing is differentiated are summed in native code's order (kernels/bank.py)
    torch.testing.assert_close(out.detach(), before, rtol=1e-5, atol=1e-6)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

"""Rows of one batch on adapters of different methods: each as if it were alone, forward, backward and generating.

In float32 the bound is 1e-5 of the largest output (of the largest gradient): a product of other rows beside it sums in
another order, with adapters and without. That nothing but this order is in it is shown in float64.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from support.cases import METHODS, meaningless
from support.laws import attached, chance, far, law, trained
from support.models import EVERY, WRITERS, inputs, logits, output, tiny
from torch import Tensor, nn

import featherweight as fw

Row = str | tuple[str, ...] | None
MIXES = [name for name, method in METHODS.items() if method.per_row]
# not Mixtral, whose products of experts take no float64, nor BLOOM, which masks a padded row to NaN in it; Gemma's
# norms give gradients in float32
DOUBLE = [arch for arch in EVERY if arch not in ("mixtral", "bloom", "gemma")]
USUAL = ("bert", "gpt2", "llama", "t5")


def mixed(method: Any, arch: str) -> tuple[nn.Module, list[Row]]:
    """A model with the method, a LoRA and one more drawn by chance; and rows of each, of a stack and of the base."""
    there = [n for n in MIXES if not meaningless(n, arch) and METHODS[n] != method]
    drawn = there[chance("mixed", repr(method), arch) % len(there)]
    model = attached(method, arch, name="a")
    attached(METHODS["lora"], arch, name="low", to=model)
    attached(METHODS[drawn], arch, name="drawn", to=model)
    return model, ["a", None, "low", ("low", "a"), "drawn", "a"]


def alone(batch: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {k: v[i : i + 1] for k, v in batch.items()}


def each_as_if_alone(model: nn.Module, rows: list[Row], arch: str) -> None:
    batch = inputs(arch, rows=len(rows))
    fw.switch(model, rows=rows)
    together = logits(model, batch)
    for i, row in enumerate(rows):
        with fw.switch(model, row):
            one = logits(model, alone(batch, i))
        assert together[i : i + 1].shape == one.shape, row
        assert far(together[i : i + 1], one) <= 1e-5, (i, row)


def gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor]:
    """Of the sum of squares of an output; the model is left without any."""
    out.square().sum().backward()
    found = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def per_row(method: Any) -> bool:
    return bool(method.per_row)


@law(dtypes=False, which=per_row)
def test_a_row_is_as_if_alone(method: Any, arch: str, dtype: torch.dtype) -> None:
    each_as_if_alone(*mixed(method, arch), arch)


@law(dtypes=False, each=3, which=per_row)
def test_its_gradients_too(method: Any, arch: str, dtype: torch.dtype) -> None:
    model, rows = mixed(method, arch)
    batch = inputs(arch, rows=len(rows))
    fw.switch(model, rows=rows)
    got = gradients(model, output(model, batch))
    assert set(got) == set(trained(model))
    for i, row in enumerate(rows):
        fw.switch(model, row)
        if row is not None:
            output(model, alone(batch, i)).square().sum().backward()
    single = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(single)
    largest = max(float(g.abs().max()) for g in single.values())
    for k, g in single.items():
        torch.testing.assert_close(got[k], g, atol=1e-5 * largest, rtol=1e-4, msg=lambda m, k=k: f"{k}: {m}")


@law(among=WRITERS, dtypes=False, each=2, which=per_row)
def test_its_tokens_too(method: Any, arch: str, dtype: torch.dtype) -> None:
    """Left-padded, greedy."""
    model, rows = mixed(method, arch)
    ids = inputs(arch, rows=len(rows))["input_ids"]
    ids = torch.stack([row.roll(i % 3).masked_fill(torch.arange(7) < i % 3, 0) for i, row in enumerate(ids)])
    mask = (torch.arange(7) >= torch.arange(len(rows))[:, None] % 3).long()
    told: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    fw.switch(model, rows=rows)
    together = model.generate(ids, attention_mask=mask, **told)
    for i, row in enumerate(rows):
        with fw.switch(model, row):
            one = model.generate(ids[i : i + 1, i % 3 :], attention_mask=mask[i : i + 1, i % 3 :], **told)
        assert torch.equal(together[i, 7:], one[0, 7 - i % 3 :]), (i, row)


def every(arch: str, dtype: torch.dtype = torch.float32, moved: bool = True) -> tuple[nn.Module, list[Row]]:
    """A model with every method, and rows of each, of the base and of stacks of two, in an order drawn by chance."""
    names = [n for n in MIXES if not meaningless(n, arch)]
    model = tiny(arch, dtype)
    for name in names:
        attached(METHODS[name], arch, name=name, to=model, moved=moved)
    rows: list[Row] = [*names, None, *pairwise(names)]
    return model, [rows[i] for i in sorted(range(len(rows)), key=lambda i: chance("order", str(i)))]


@pytest.mark.parametrize("arch", EVERY)
def test_every_method_in_one_batch(arch: str) -> None:
    each_as_if_alone(*every(arch), arch)


@pytest.mark.parametrize("moved", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("arch", [a if a in USUAL else pytest.param(a, marks=pytest.mark.sweep) for a in DOUBLE])
def test_nothing_but_rounding_is_between_a_row_and_itself_alone(arch: str, moved: bool) -> None:
    """Every method at once, freshly attached and trained, in float64: forward and backward."""
    model, rows = every(arch, torch.float64, moved)
    batch = inputs(arch, rows=len(rows))
    fw.switch(model, rows=rows)
    together = output(model, batch)
    got = gradients(model, together)
    for i, row in enumerate(rows):
        fw.switch(model, row)
        one = output(model, alone(batch, i))
        assert far(together[i : i + 1], one) <= 1e-12, row
        if row is not None:
            one.square().sum().backward()
    single = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(single)
    largest = max(float(g.abs().max()) for g in single.values())
    assert {k: d for k, g in single.items() if (d := float((got[k] - g).abs().max())) > 1e-12 * largest} == {}


@law(dtypes=False, each=2, which=lambda method: not method.per_row)
def test_what_cannot_differ_from_row_to_row_says_so(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(METHODS["lora"], arch, name="low")
    attached(method, arch, name="whole", to=model)
    before = logits(model, inputs(arch))
    with pytest.raises(fw.InputError, match=r"rows: whole"):
        fw.switch(model, rows=["low", "whole"])
    assert torch.equal(logits(model, inputs(arch)), before)

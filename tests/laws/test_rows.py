"""Rows of one batch on adapters of different methods: each as if it were alone, forward, backward and generating."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from support.cases import METHODS, meaningless
from support.laws import attached, chance, far, law, trained
from support.models import EVERY, WRITERS, inputs, logits, output
from torch import Tensor, nn

import featherweight as fw

Row = str | tuple[str, ...] | None
MIXES = [name for name, method in METHODS.items() if method.per_row]


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
    output(model, batch).square().sum().backward()
    got = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(trained(model))
    model.zero_grad()
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


@pytest.mark.parametrize("arch", EVERY)
def test_every_method_in_one_batch(arch: str) -> None:
    names = [n for n in MIXES if not meaningless(n, arch)]
    model = attached(METHODS[names[0]], arch, name=names[0])
    for name in names[1:]:
        attached(METHODS[name], arch, name=name, to=model)
    rows: list[Row] = [*names, None, *pairwise(names)]
    rows = [rows[i] for i in sorted(range(len(rows)), key=lambda i: chance("order", str(i)))]
    each_as_if_alone(model, rows, arch)


@law(dtypes=False, each=2, which=lambda method: not method.per_row)
def test_what_cannot_differ_from_row_to_row_says_so(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(METHODS["lora"], arch, name="low")
    attached(method, arch, name="whole", to=model)
    before = logits(model, inputs(arch))
    with pytest.raises(fw.InputError, match=r"rows: whole"):
        fw.switch(model, rows=["low", "whole"])
    assert torch.equal(logits(model, inputs(arch)), before)

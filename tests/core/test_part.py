"""Slices of fused projections: cut and pasted as index operations do, and the host is called once for all of them."""

from typing import Any

import pytest
import torch
from support.models import inputs, tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

import featherweight as fw
from featherweight.core.base import Base
from featherweight.core.host import become_host, leave_host
from featherweight.core.part import Part, PartBase, Rows, sections
from featherweight.core.switch import Switch

TOGETHER, APART = torch.arange(3, 7), torch.tensor([1, 2, 5, 9])


@pytest.mark.parametrize("at", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("dim", [0, 1])
def test_rows_are_cut_and_pasted_as_by_index_with_gradients(at: torch.Tensor, dim: int) -> None:
    W = torch.randn(10, 10, requires_grad=True)
    w = torch.randn(W.index_select(dim, at).shape, requires_grad=True)
    weights = torch.randn(10, 10)
    rows = Rows.of(at)
    assert (rows.first is None) == (at is APART)
    for ours, theirs in (
        (rows.cut(W, dim).sin().sum(), W.index_select(dim, at).sin().sum()),
        ((rows.paste(W, w, dim) * weights).sum(), (W.index_copy(dim, at, w) * weights).sum()),
    ):
        mine = torch.autograd.grad(ours, (W, w), allow_unused=True)
        judge = torch.autograd.grad(theirs, (W, w), allow_unused=True)
        assert torch.equal(ours, theirs)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(mine, judge, strict=True))


def test_a_paste_is_a_copy() -> None:
    W = torch.zeros(4, 2)
    Rows.of(torch.arange(2)).paste(W, torch.ones(2, 2), 0)
    assert not W.any()


def test_sections_name_the_parts_in_the_order_of_their_rows_and_what_lies_between() -> None:
    host = nn.Linear(2, 10)
    key, query = Rows.of(torch.arange(6, 8)), Rows.of(torch.arange(1, 4))
    found = sections({"key": key, "query": query}, host)
    assert found == {"before query": 1, "query": 3, "before key": 2, "key": 2, "before ": 2}
    assert sections({"key": key, "query": Rows.of(APART)}, host) is None, "scattered"
    assert sections({"key": key, "also": Rows.of(torch.arange(7, 9))}, host) is None, "overlapping"
    assert sections({"whole": None}, host) is None


def test_a_part_of_a_conv1d_reads_as_out_by_in() -> None:
    conv = Conv1D(6, 3)
    part = Part(conv, torch.arange(2, 4))
    assert torch.equal(part.weight, conv.weight.T[2:4])
    assert torch.equal(part.paste("weight", conv.weight, torch.zeros(2, 3))[:, 2:4], torch.zeros(3, 2))


@pytest.mark.parametrize("at", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("host", [nn.Linear(5, 12), Conv1D(12, 5)], ids=["linear", "conv1d"])
def test_a_part_answers_other_inputs_by_its_own_rows(host: Any, at: torch.Tensor) -> None:
    become_host(host, Switch(), "it")
    x, other = torch.randn(3, 5), torch.randn(3, 5, requires_grad=True)
    base = Base(host)
    part = PartBase(base, Part(host, at), (x, base(x)[:, at]))
    assert part(x) is part.known[1]  # type: ignore[index]
    assert torch.equal(part(x.clone()), base(x)[:, at])
    wanted = base(other)[:, at]
    torch.testing.assert_close(part(other), wanted)
    g = torch.randn_like(wanted)
    torch.testing.assert_close(torch.autograd.grad(part(other), other, g), torch.autograd.grad(wanted, other, g))
    leave_host(host)


METHODS = [
    fw.IA3(), fw.BitFit(), fw.BitFit(targets=("query", "value")), fw.LoRA(), fw.LoRA(targets="linear"), fw.VeRA(rank=4),
    fw.Scaling(targets=("down",)), fw.Scaling(), fw.FishMask(density=0.1), fw.DoRA(),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_host_is_called_twice(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """(IA)³ and Scaling scale what a Conv1D reads, biases rewrite it: none pays for a product that it does not use."""
    model, calls, forward = tiny("gpt2"), [0], Conv1D.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(self, x)  # type: ignore[no-any-return]

    monkeypatch.setattr(Conv1D, "forward", counted)

    def count() -> int:
        calls[0] = 0
        model(**inputs("gpt2"))
        return calls[0]

    plain = count()
    fw.attach(model, method, head=False)
    assert count() == plain

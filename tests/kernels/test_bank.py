"""Rows of LoRA through the bank: equal to each row alone and to the nested path, forward and backward; never stale."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight.core import fused
from featherweight.core.host import hosts
from featherweight.kernels import bank, native
from featherweight.methods import LoRA
from featherweight.quant import ops

ON_LINEAR = (bank.LowRank, nn.Linear)
PATTERNS = {
    "all different": ["a", "b", "c", "d"],
    "pairs in turn": ["a", "b", "c", "a", "b", "c"],
    "pairs together": ["a", "a", "b", "b"],
    "uneven": ["a", "b", "a", "c", "a"],
    "very uneven": ["a", "a", "a", "a", "a", "a", "a", "b", "c", "d"],
    "some without": [None, "a", "b", None, "a"],
    "very uneven, some without": ["a", "a", None, "a", "a", "b", None, "c", "d", None],
    "one and none": ["b", None],
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def served(dtype: torch.dtype = torch.float64, train: bool = True, dropout: float = 0.0) -> Any:
    """Four adapters of unlike ranks and scales."""
    torch.manual_seed(0)
    model = Net().to(dtype)
    for rank, name in enumerate("abcd", 1):
        method = LoRA(rank=rank, alpha=2.0 + rank, targets=("first", "second"), dropout=dropout)
        fw.attach(model, method, name, train=train)
    for _, host in hosts(model):
        for adapter in host.adapters.values():
            nn.init.normal_(adapter.lora_B.weight)
    return model


def grads(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and rows are nested from then on."""
    return lambda: monkeypatch.setattr(fused, "banks", {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every call of the bank."""
    seen: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return bank.serve(*args, **kwargs)

    monkeypatch.setitem(fused.banks, ON_LINEAR, counted)
    return seen


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_row_as_alone(pattern: str, shape: tuple[int, ...], calls: list[int]) -> None:
    model, rows = served(), PATTERNS[pattern]
    x = torch.randn(len(rows), *shape, dtype=torch.float64)
    alone = []
    for row, name in zip(x, rows, strict=True):
        fw.switch(model, name)
        alone.append(model(row[None]))
    fw.switch(model, rows=rows)
    assert not calls
    torch.testing.assert_close(model(x), torch.cat(alone))
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat(alone))
        torch.testing.assert_close(model(x), torch.cat(alone))
    assert len(calls) == 6


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_nested_path_and_its_gradients(pattern: str, nested: Any) -> None:
    model, rows = served(), PATTERNS[pattern]
    fw.switch(model, rows=rows)
    x = torch.randn(len(rows), 3, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(rows), 3, 6, dtype=torch.float64)

    def step() -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
        y = model(x)
        (y * weights).sum().backward()
        dx, x.grad = x.grad, None
        return y, dx, grads(model)

    ours = step()
    nested()
    theirs = step()
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])
    assert list(ours[2]) == list(theirs[2])
    assert len(ours[2]) == 4 * len({r for r in rows if r})
    for name in theirs[2]:
        torch.testing.assert_close(ours[2][name], theirs[2][name])


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_whole_model(dtype: torch.dtype, far: float, llama: Any, nested: Any) -> None:
    """fp32 adapters on either base. The nested path computes in fp32 what the bank computes in bf16."""
    model = llama(dtype).eval()
    for rank, name in zip((2, 4, 8), "abc", strict=True):
        fw.attach(model, LoRA(rank=rank, targets="linear"), name)
    for _, host in hosts(model):
        for adapter in host.adapters.values():
            nn.init.normal_(adapter.lora_B.weight, std=0.05)
    fw.switch(model, rows=["a", "b", None, "c", "b"])
    ids = torch.randint(61, (5, 7), generator=torch.Generator().manual_seed(0))
    ours = model(ids, labels=ids)
    ours.loss.backward()
    mine = grads(model)
    nested()
    theirs = model(ids, labels=ids)
    theirs.loss.backward()
    scale = theirs.logits.abs().max()
    assert (ours.logits - theirs.logits).abs().max() <= far * scale
    for name, grad in grads(model).items():
        assert (mine[name] - grad).abs().max() <= far * grad.abs().max() + 1e-8, name


def test_neighbors_share_an_entry(calls: list[int]) -> None:
    """Beams: the batch holds several rows for each entry."""
    model = served()
    x = torch.randn(6, 12, dtype=torch.float64)
    fw.switch(model, rows=["a", "a", None, None, "c", "c"])
    wanted = model(x)
    fw.switch(model, rows=["a", None, "c"])
    torch.testing.assert_close(model(x), wanted)
    assert len(calls) == 4


CHANGES = {
    "in place": lambda p: p.mul_(2),
    "an optimizer": lambda p: setattr(p, "grad", torch.ones_like(p)) or torch.optim.SGD([p], lr=0.5).step(),
    "other memory": lambda p: setattr(p, "data", p.data * 2),
    "other memory twice": lambda p: (setattr(p, "data", p.data.clone()), setattr(p, "data", p.data * 2)),
    "inference": lambda p: inference(p),
}


def inference(p: torch.Tensor) -> None:
    with torch.inference_mode():
        p.mul_(2)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_are_seen(change: str, nested: Any) -> None:
    model = served()
    fw.switch(model, rows=["a", "b", "a", None])
    x = torch.randn(4, 12, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        CHANGES[change](model.first.adapters["b"].lora_A.weight)
        after = model(x)
        nested()
        torch.testing.assert_close(after, model(x))
    assert not torch.allclose(before[1], after[1])
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])


def test_other_modules_and_another_dtype_are_seen(nested: Any) -> None:
    model = served(torch.float32)
    fw.switch(model, rows=["a", "b"])
    x = torch.randn(2, 12)
    with torch.no_grad():
        model(x)
        model.first.adapters["a"].lora_A = nn.Linear(12, 1, bias=False)
        once = model(x)
        twice = model.double()(x.double())
        nested()
        torch.testing.assert_close(twice, model(x.double()))
        torch.testing.assert_close(once.double(), twice, atol=1e-5, rtol=1e-5)


def test_the_stack_is_kept_and_then_trained_through() -> None:
    """What was made under inference mode must not meet autograd, and the stack of one call serves the next."""
    model = served()
    x = torch.randn(3, 12, dtype=torch.float64)
    fw.switch(model, rows=["a", "b", "c"])
    with torch.inference_mode():
        first = model(x)
        kept = vars(model.first.adapters)["plan"].memo.kept
        model(x)
    assert vars(model.first.adapters)["plan"].memo.kept is kept
    y = model(x)
    y.sum().backward()
    torch.testing.assert_close(first, y)
    assert model.first.adapters["a"].lora_A.weight.grad is not None
    assert model.first.adapters["d"].lora_A.weight.grad is None


def test_frozen_adapters_pass_gradients_on() -> None:
    model = served(train=False)
    fw.switch(model, rows=["a", "b"])
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert torch.autograd.gradcheck(model, (x,))


def test_dropout_is_nested_in_training_and_banked_in_use(calls: list[int], nested: Any) -> None:
    model = served(dropout=0.5)
    fw.switch(model, rows=["a", "b"])
    x = torch.randn(2, 200, 12, dtype=torch.float64)
    model.train()
    assert not torch.equal(model(x), model(x))
    torch.manual_seed(1)
    ours = model(x)
    model.eval()
    used = model(x)
    assert torch.equal(used, model(x))
    assert calls
    nested()
    torch.testing.assert_close(used, model(x))
    torch.manual_seed(1)
    assert torch.equal(ours, model.train()(x))


def test_autocast_computes_in_its_dtype() -> None:
    model = served(torch.float32)
    x = torch.randn(3, 4, 12)
    fw.switch(model, rows=["a", None, "c"])
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, atol=0.1, rtol=0.05)
    y.float().sum().backward()
    assert model.first.adapters["a"].lora_A.weight.grad.dtype == torch.float32


def test_a_compiled_graph_is_equal() -> None:
    model = served(torch.float32, train=False)
    fw.switch(model, rows=["a", "b", "a", None])
    x = torch.randn(4, 12)
    wanted = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), wanted)


def test_a_stack_is_not_the_banks(calls: list[int]) -> None:
    model = served()
    fw.switch(model, rows=[("a", "b"), "c"])
    model(torch.randn(2, 12, dtype=torch.float64))
    assert not calls


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_few_rows_in_native_code(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of each row in float32: what the stack's two products give, and no product of torch's."""
    if native.load().level is None:
        pytest.skip(native.load().reason)
    model, rows = served(torch.float32, train=False), PATTERNS[pattern]
    x = torch.randn(len(rows), 1, 12)
    with fw.switch(model, rows=rows):
        with monkeypatch.context() as torchs:
            torchs.delitem(ops.native, "bank", raising=False)
            expected = model(x)
        with FlopCounterMode(display=False), torch.no_grad():
            watched = model(x)
        monkeypatch.setattr(bank, "add", None)
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(watched, expected, rtol=1e-5, atol=1e-5)

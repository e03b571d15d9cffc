"""Multiplicative scaling: (IA)³ is its k = 1 case, bit for bit; the start is the identity, and k terms stay k."""

from typing import Any

import pytest
import torch
from support.models import inputs, logits, tiny

import featherweight as fw
from featherweight.core.state import adapters

PAIRS = {
    "outputs": (fw.IA3(feedforward=()), fw.Scaling(sides="output")),
    "inputs": (fw.IA3(targets=()), fw.Scaling(sides="input", targets=("down",))),
}


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("which", PAIRS)
def test_ia3_is_the_case_of_rank_one(which: str, arch: str) -> None:
    """Outputs, one step of training, and the merged model; biases are not zero here, so they must be scaled too."""
    models = [fw.attach(tiny(arch), method, head=False) for method in PAIRS[which]]
    noise = torch.Generator().manual_seed(0)
    firsts, seconds = ([p for p in m.parameters() if p.requires_grad] for m in models)
    assert len(firsts) == len(seconds) > 1
    for p, q in zip(firsts, seconds, strict=True):
        assert p.numel() == q.numel()
        p.data += 0.3 * torch.randn(p.shape, generator=noise)
        q.data.copy_(p.view(q.shape))
    for model in models:
        model(**inputs(arch)).logits.square().mean().backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert all(torch.equal(p.flatten(), q.flatten()) for p, q in zip(firsts, seconds, strict=True))
    assert torch.equal(*(logits(m, inputs(arch)) for m in models))
    assert torch.equal(*(logits(fw.merge(m), inputs(arch)) for m in models))


def layer(method: fw.Scaling, *, ones: bool = False) -> tuple[torch.nn.Linear, Any]:
    torch.manual_seed(0)
    host = torch.nn.Linear(3, 2)
    if ones:
        torch.nn.init.ones_(host.weight)
        torch.nn.init.ones_(host.bias)
    fw.attach(torch.nn.Sequential(host), method)
    return host, host.adapters["default"]  # type: ignore[union-attr]


def test_by_hand() -> None:
    """W = 1, β = 1, k = 2, b = [1 2; 3 4], a = [1 0 2; 0 3 1]: (b a)/2 = [½ 3 2; 1½ 6 5], β' = (1½, 3½)."""
    host, a = layer(fw.Scaling(rank=2, targets="0"), ones=True)
    a.scaling_b.data, a.scaling_a.data = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0, 2], [0, 3, 1]])
    x = torch.tensor([2.0, 4.0, 6.0])
    wanted = torch.tensor([1 + 12 + 12 + 1.5, 3 + 24 + 30 + 3.5])
    assert torch.equal(host(x), wanted)
    terms = [a.scaling_b[:, j] * (torch.ones(2, 3) @ (a.scaling_a[j] * x) + 1) for j in (0, 1)]
    assert torch.equal(sum(terms) / 2, wanted), "h = 1/k Σ b ⊙ (W (a ⊙ x) + β)"


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_identity_to_the_last_bit(rank: int, dtype: torch.dtype) -> None:
    before = logits(tiny("bert", dtype), inputs("bert"))
    model = fw.attach(tiny("bert", dtype), fw.Scaling(rank=rank, targets="linear"), head=False)
    assert torch.equal(logits(model, inputs("bert")), before)


def test_noise_at_the_start_is_what_makes_k_terms_of_k() -> None:
    """Fitting W ⊙ M for an M of rank 2. All at 1, both terms get the same gradient for ever, and M stays of rank 1."""
    left = {}
    for noise in (0.1, 0.0):
        host, a = layer(fw.Scaling(rank=2, targets="0", noise=noise))
        wanted = host.weight.detach() * torch.tensor([[1.0, 2, 0.5], [2, 0.5, 1]])
        optimizer = torch.optim.Adam(a.parameters(), 0.02)
        for _ in range(400):
            optimizer.zero_grad()
            (100 * (host(torch.eye(3)) - host(torch.zeros(1, 3)) - wanted.T).square().mean()).backward()
            optimizer.step()
        M = (a.scaling_b @ a.scaling_a).detach() / 2
        left[noise] = float(torch.linalg.svdvals(M)[1])
    assert left[0.1] > 0.5
    assert left[0.0] < 1e-5


def test_counts_and_no_decay() -> None:
    both, out, into = (fw.attach(tiny("llama"), fw.Scaling(rank=3, sides=s)) for s in ("both", "output", "input"))
    counts = [fw.trainable(m).trainable for m in (both, out, into)]
    assert counts == [2 * 2 * 3 * (16 + 32), 2 * 2 * 3 * 16, 2 * 2 * 3 * 32]
    groups = fw.Scaling().groups(adapters(both, "default"), 1e-3)
    assert all(g["weight_decay"] == 0 for g in groups)


def test_bad_input() -> None:
    with pytest.raises(fw.InputError, match=r"(?s)method\.rank.*unknown sides; expected both or .*noise"):
        fw.attach(tiny("llama"), fw.Scaling(rank=0, sides="out", noise=1.0))

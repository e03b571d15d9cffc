"""Intrinsic dimension: the Fastfood map against its dense matrix, gradients and counts by hand."""

import subprocess
import sys

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.state import adapters, state
from featherweight.methods.fastfood import Fastfood, drawn, hadamard, hashed

FROZEN = (
    "[1, 1, -1, -1, 1, 1, -1, 1, 1, 1, -1, 1] [0, 2, 1, 3] [-1116708085, 1009890685, -1096788925, 1036485710, "
    "1046439474, 1044740496, -1106273661, -1113120568, 1049675985, -1104195615, 1015781422, 1025571138]"
)


def dense(P: Fastfood) -> torch.Tensor:
    """c [H G Π H B; …] written out with matrices (n, d)."""
    H = torch.ones(1, 1)
    while len(H) < P.size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    Pi = torch.eye(P.size)[P.order]
    blocks = [
        H @ torch.diag(g) @ Pi @ H @ torch.diag(b)
        for g, b in zip(P.gauss.view(torch.float32), P.signs.float(), strict=True)
    ]
    return torch.cat(blocks)[: P.n, : P.d]


@pytest.mark.parametrize(("n", "d"), [(16, 8), (7, 5), (30, 8), (3, 12), (1, 1), (5, 1), (64, 33)])
def test_fastfood_is_its_dense_matrix(n: int, d: int) -> None:
    P, z = Fastfood(n, d, seed=1, stream=2), torch.randn(d, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(P(z), dense(P) @ z, atol=1e-5, rtol=1e-5)


def test_hadamard_of_eight_by_hand() -> None:
    x = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])
    assert hadamard(x).tolist() == [4, 2, 0, -2, 0, 2, 0, 2]
    torch.testing.assert_close(hadamard(hadamard(x)), 8 * x)


def test_the_map_keeps_lengths() -> None:
    z = torch.randn(300)
    for n in (2000, 17 * 513, 600):
        long = torch.stack([Fastfood(n, 300, 0, s)(z).norm() / z.norm() for s in range(20)])
        assert 0.9 < long.mean() < 1.1


def test_the_generator_is_the_published_one_and_its_draws_are_what_they_say() -> None:
    """splitmix64 seeded with 0 gives 0xE220A8397B1DCDAF first (the reference implementation's value)."""
    from featherweight.methods.fastfood import mixed

    assert int(mixed(torch.tensor(0))) % 2**64 == 0xE220A8397B1DCDAF
    signs, gauss = drawn(200_000, seed=5, stream=4)
    assert abs(float(signs.float().mean())) < 0.01
    assert set(signs.unique().tolist()) == {-1, 1}
    assert abs(float(gauss.mean())) < 0.01
    assert abs(float(gauss.std()) - 1) < 0.01
    assert abs(float((gauss.abs() < 1).float().mean()) - 0.6827) < 0.005
    assert len(hashed(torch.arange(100_000), 0, 1).unique()) == 100_000
    assert not torch.equal(drawn(8, 0, 0)[1], drawn(8, 1, 0)[1])
    assert not torch.equal(drawn(8, 0, 0)[1], drawn(8, 0, 2)[1])


def test_pieces_are_drawn_as_one() -> None:
    import featherweight.methods.fastfood as module

    whole = drawn(1000, 3, 1)
    step, module.STEP = module.STEP, 77
    try:
        pieces = drawn(1000, 3, 1)
    finally:
        module.STEP = step
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_another_process_regenerates_it_bit_for_bit() -> None:
    """Version 1 is frozen: these are its numbers, in a process with another global seed."""
    code = (
        "import torch; torch.manual_seed(9); from featherweight.methods.fastfood import Fastfood as F;"
        "P = F(9, 4, 7, 3); print(P.signs.flatten().tolist(), P.order.tolist(), P.gauss.flatten().tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    P = Fastfood(9, 4, 7, 3)
    assert told == f"{P.signs.flatten().tolist()} {P.order.tolist()} {P.gauss.flatten().tolist()}"
    assert told == FROZEN


def test_did_has_the_projected_gradient() -> None:
    """∂L/∂z = Σ_i P_iᵀ ∂L/∂θ_i, the right side by full fine-tuning and dense matrices."""
    batch = inputs("llama")
    full = tiny("llama")
    full(**batch, labels=batch["input_ids"]).loss.backward()
    model = fw.attach(tiny("llama"), fw.Intrinsic(dimension=10, structure=False))
    model(**batch, labels=batch["input_ids"]).loss.backward()
    own = adapters(model, "default")
    expected = torch.zeros(10)
    for path, adapter in own.items():
        for name, P in adapter.of.items():
            expected += dense(P).T @ full.get_parameter(f"{path}.{name}").grad.flatten()
    space = next(iter(own.values())).space
    torch.testing.assert_close(space.z.grad, expected, atol=1e-5, rtol=1e-4)


def test_said_moves_each_tensor_by_its_lambda_times_the_map() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    before = [p.detach().clone() for p in model.parameters()]
    fw.attach(model, fw.Intrinsic(dimension=9, seed=4), head=False)
    disturb(model, scale=1.0)
    space = adapters(model, "default")["0"].space
    assert (space.z.shape, space.scales.shape) == ((5,), (4,))
    maps = [dense(P) for a in adapters(model, "default").values() for P in a.of.values()]
    expected = [W + (lam * (P @ space.z)).view(W.shape) for W, lam, P in zip(before, space.scales, maps, strict=True)]
    for p, e in zip(fw.merge(model).parameters(), expected, strict=True):
        torch.testing.assert_close(p, e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dimension", [500, 20_000])
def test_counts_are_the_dimension(dimension: int) -> None:
    """T-Few, appendix D: 500K and 20K by construction, λ included."""
    for structure in (True, False):
        model = fw.attach(tiny("t5"), fw.Intrinsic(dimension=dimension, structure=structure))
        assert fw.trainable(model).trainable == dimension
    m = len(list(tiny("t5").parameters()))
    said = state(fw.attach(tiny("t5"), fw.Intrinsic(dimension=dimension)), "default")
    assert {k.rpartition(".")[2]: t.numel() for k, t in said.items()} == {"z": dimension - m, "scales": m}


@pytest.mark.parametrize(("dimension", "printed"), [(500_000, 500_000), (20_000, 20_000)])
def test_counts_without_storage(dimension: int, printed: int) -> None:
    import transformers

    config = transformers.T5Config(d_model=2048, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32, d_kv=64,
                                   vocab_size=32128, feed_forward_proj="gated-gelu")  # fmt: skip
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = nn.Parameter(torch.empty(32128, 2048))  # T0's is untied
    assert fw.trainable(fw.attach(model, fw.Intrinsic(dimension=dimension))).trainable == printed


def test_a_cast_of_the_model_keeps_the_map() -> None:
    model = fw.attach(tiny("bert"), fw.Intrinsic(dimension=200))
    before = {
        p: a.of["weight"].gauss.clone()
        for p, a in adapters(model, "default").items()
        if "dense" in p and "of" in dir(a)
    }
    model.to(torch.bfloat16)
    assert before
    for path, gauss in before.items():
        assert torch.equal(adapters(model, "default")[path].of["weight"].gauss, gauss)


def test_a_few_steps_lower_the_loss() -> None:
    model, batch = tiny("llama"), inputs("llama")
    method = fw.Intrinsic(dimension=100)
    fw.attach(model, method)
    optimizer = torch.optim.AdamW(method.groups(adapters(model, "default"), 3e-2))
    losses = []
    for _ in range(15):
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("method", "word"),
    [(fw.Intrinsic(dimension=20), "λ"), (fw.Intrinsic(dimension=0, structure=False), "dimension"),
     (fw.Intrinsic(generator=99), "generator")],
)  # fmt: skip
def test_bad_fields(method: fw.Intrinsic, word: str) -> None:
    with pytest.raises(fw.InputError, match=word):
        fw.attach(tiny("bert"), method)


def test_switched_off_is_the_base_bit_for_bit() -> None:
    model = fw.attach(tiny("gpt2"), fw.Intrinsic(dimension=100))
    disturb(model)
    with fw.switch(model, None):
        assert torch.equal(logits(model, inputs("gpt2")), logits(tiny("gpt2"), inputs("gpt2")))

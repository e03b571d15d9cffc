"""Every loss against numbers worked by hand, plain loops, and public code where it is installed."""

import math

import pytest
import torch
from torch.nn.functional import kl_div

from featherweight.core.errors import InputError
from featherweight.distill import losses as L

LN2 = math.log(2)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# logits: p = (3/4, 1/4) and q = (1/2, 1/2)
TEACHER, STUDENT = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])


def test_logit_losses_by_hand() -> None:
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    m = (0.625, 0.375)
    jsd = 0.5 * (0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1]))
    jsd += 0.5 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
    for made, wanted in (
        (L.kl(STUDENT, TEACHER), forward),
        (L.reverse_kl(STUDENT, TEACHER), backward),
        (L.generalized_jsd(STUDENT, TEACHER), jsd),
        (L.soft_cross_entropy(STUDENT, TEACHER), LN2),
        (L.argmax_cross_entropy(STUDENT, TEACHER), LN2),
        (L.logit_mse(STUDENT, TEACHER), math.log(3) ** 2),
    ):
        assert made.shape == (1,)
        assert made.item() == pytest.approx(wanted, abs=1e-6)


def test_temperature_by_hand() -> None:
    """Logits (ln 9, 0) at T = 2 are softened to p = (3/4, 1/4); squared multiplies by 4."""
    teacher = torch.tensor([[math.log(9), 0.0]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert L.kl(STUDENT, teacher, 2.0).item() == pytest.approx(4 * forward, abs=1e-6)
    assert L.kl(STUDENT, teacher, 2.0, squared=False).item() == pytest.approx(forward, abs=1e-6)


def test_gradient_is_T_times_q_minus_p() -> None:
    z_s, z_t = seeded(6, 11).requires_grad_(), seeded(6, 11, seed=1)
    for T in (1.0, 2.0, 7.0):
        (gradient,) = torch.autograd.grad(L.kl(z_s, z_t, T).mean(), z_s)
        wanted = T * ((z_s / T).softmax(-1) - (z_t / T).softmax(-1)) / 6
        assert torch.allclose(gradient, wanted, atol=1e-12, rtol=0)


def test_squared_temperature_keeps_the_gradient_of_one_size() -> None:
    z_s, z_t = seeded(6, 11).requires_grad_(), seeded(6, 11, seed=1)

    def size(T: float, squared: bool) -> float:
        return float(torch.autograd.grad(L.kl(z_s, z_t, T, squared).mean(), z_s)[0].norm())

    assert size(8, True) / size(1, True) == pytest.approx(1, abs=0.2)
    assert size(4, True) / size(2, True) == pytest.approx(1, abs=0.1)
    assert size(8, False) / size(1, False) == pytest.approx(1 / 64, rel=0.2)


def test_hot_limit_is_logit_matching() -> None:
    z_s, z_t = seeded(6, 11).requires_grad_(), seeded(6, 11, seed=1)
    (gradient,) = torch.autograd.grad(L.kl(z_s, z_t, 1e4).mean(), z_s)
    centered = (z_s - z_s.mean(-1, keepdim=True)) - (z_t - z_t.mean(-1, keepdim=True))
    assert (gradient - centered / (11 * 6)).norm() / gradient.norm() < 1e-3


def test_kl_equals_torch_and_cross_entropy_is_the_entropy_more() -> None:
    z_s, z_t = seeded(4, 5, 9), seeded(4, 5, 9, seed=1)
    log_q, p = (z_s / 3).log_softmax(-1), (z_t / 3).softmax(-1)
    assert torch.allclose(L.kl(z_s, z_t, 3.0, False), kl_div(log_q, p, reduction="none").sum(-1), atol=1e-12)
    entropy = -(p * p.log()).sum(-1)
    apart = L.soft_cross_entropy(z_s, z_t, 3.0) - L.kl(z_s, z_t, 3.0, False)
    assert torch.allclose(apart, entropy, atol=1e-12)


def test_ends_of_the_jsd() -> None:
    z_s, z_t = seeded(6, 11), seeded(6, 11, seed=1)
    assert torch.equal(L.generalized_jsd(z_s, z_t, 0), L.kl(z_s, z_t))
    assert torch.equal(L.generalized_jsd(z_s, z_t, 1), L.reverse_kl(z_s, z_t))
    assert torch.allclose(L.generalized_jsd(z_s, z_t, 1e-6) / 1e-6, L.kl(z_s, z_t), rtol=1e-4)
    assert torch.allclose(L.generalized_jsd(z_s, z_t, 1 - 1e-6) / 1e-6, L.reverse_kl(z_s, z_t), rtol=1e-4)
    assert (L.generalized_jsd(30 * z_s, 30 * z_t) <= LN2).all()


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_jsd_equals_trl(beta: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd")
    z_s, z_t = seeded(2, 7, 13), seeded(2, 7, 13, seed=1)
    labels = torch.randint(0, 13, (2, 7), generator=torch.Generator().manual_seed(0))
    labels[0, 4:] = labels[1, 0] = -100
    theirs = gkd.GKDTrainer.generalized_jsd_loss(z_s, z_t, labels, beta, temperature=0.9)
    ours = L.mean(L.generalized_jsd(z_s, z_t, beta, 0.9), labels != -100)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_impossible_words_count_nothing() -> None:
    z_s, z_t = seeded(3, 5, dtype=torch.float32), seeded(3, 5, seed=1, dtype=torch.float32)
    both = [torch.cat([z, torch.full((3, 1), -torch.inf)], 1) for z in (z_s, z_t)]
    assert torch.allclose(L.kl(*both), L.kl(z_s, z_t), atol=1e-6)


def test_states_by_hand() -> None:
    h_s, h_t = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [0.0, 2.0]]])
    assert torch.allclose(L.state_mse(h_s, h_t), torch.tensor([[1.0, 2.5]]))
    assert torch.allclose(L.state_cosine(h_s, h_t), torch.tensor([[1 - 24 / 25, 1.0]]), atol=1e-6)


def test_maps_by_hand() -> None:
    """Two heads; the second key is behind the mask for the first query."""
    a_s = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]]])
    a_t = torch.tensor([[[[1.0, 0.0], [0.75, 0.25]], [[1.0, 0.0], [0.25, 0.75]]]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    causal = torch.ones(2, 2).tril().bool()[None]
    assert torch.allclose(L.map_kl(a_s, a_t, causal), torch.tensor([[0.0, forward / 2]]), atol=1e-6)
    assert torch.allclose(L.map_mse(a_s, a_t, causal), torch.tensor([[0.0, 0.0625 / 2]]), atol=1e-6)
    raw_s, raw_t = torch.tensor([[[[1.0, -1e9]]]]), torch.tensor([[[[3.0, -3e38]]]])
    keys = torch.tensor([[[True, False]]])
    assert L.score_mse(raw_s, raw_t, keys).item() == pytest.approx(4.0)


def test_relation_by_hand() -> None:
    """X = (2, 0), d = 1: X Xᵀ = ((4, 0), (0, 0)), so that the rows are (e⁴, 1)/(e⁴ + 1) and (1/2, 1/2)."""
    made = L.relation(torch.tensor([[[[2.0], [0.0]]]]))
    first = math.exp(4) / (math.exp(4) + 1)
    assert torch.allclose(made, torch.tensor([[[[first, 1 - first], [0.5, 0.5]]]]), atol=1e-6)
    student = torch.zeros(1, 1, 2, 1)
    wanted = first * math.log(2 * first) + (1 - first) * math.log(2 * (1 - first))
    made = L.value_relation_kl(student, torch.tensor([[[[2.0], [0.0]]]]))
    assert torch.allclose(made, torch.tensor([[wanted, 0.0]]), atol=1e-6)


def test_multi_head_relations_equal_a_loop_over_heads() -> None:
    x_s, x_t, heads = seeded(2, 5, 12), seeded(2, 5, 24, seed=1), 3
    total = torch.zeros(2, 5, dtype=torch.float64)
    for k in range(heads):
        one, other = x_s[..., 4 * k : 4 * k + 4], x_t[..., 8 * k : 8 * k + 8]
        r_s, r_t = ((y @ y.transpose(1, 2) / y.shape[-1] ** 0.5).softmax(-1) for y in (one, other))
        total += (r_t * (r_t.log() - r_s.log())).sum(-1)
    assert torch.allclose(L.relation_kl(x_s, x_t, heads), total / heads, atol=1e-12)
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (x_s, x_t)]
    assert torch.equal(L.relation_kl(x_s, x_t, heads), L.value_relation_kl(*split))
    assert torch.equal(L.multi_head_relation(x_s, heads), L.relation(split[0]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    """Pad tokens with wild values, in front or behind: the mean is the same, and so is each gradient."""
    b, s, pad, d = 2, 4, 3, 6
    real = torch.ones(b, s, dtype=torch.bool)
    gap = torch.zeros(b, pad, dtype=torch.bool)
    order = [gap, real] if side == "left" else [real, gap]
    padded_mask = torch.cat(order, 1)

    def padded(x: torch.Tensor) -> torch.Tensor:
        wild = torch.full((b, pad, x.shape[-1]), 1e3, dtype=x.dtype)
        return torch.cat([wild, x] if side == "left" else [x, wild], 1)

    def total(x_s: torch.Tensor, x_t: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keys = mask[:, None, :]
        values = [
            L.kl(x_s, x_t, 2.0),
            L.state_mse(x_s, x_t),
            L.state_cosine(x_s, x_t),
            L.relation_kl(x_s, x_t, 2, keys),
        ]
        values += [L.map_mse(*(L.multi_head_relation(x, 2, keys) for x in (x_s, x_t)), keys)]
        values += [L.map_kl(*(L.multi_head_relation(x, 2, keys) for x in (x_s, x_t)), keys)]
        return torch.stack([L.mean(v, mask) for v in values])

    x_s, x_t = seeded(b, s, d).requires_grad_(), seeded(b, s, d, seed=1)
    plain, more = total(x_s, x_t, real), total(padded(x_s), padded(x_t), padded_mask)
    assert torch.allclose(plain, more, atol=1e-9)
    one, other = (torch.autograd.grad(t.sum(), x_s)[0] for t in (plain, more))
    assert torch.isfinite(other).all()
    assert torch.allclose(one, other, atol=1e-9)


def test_relation_hides_the_future() -> None:
    x_s, x_t = seeded(1, 4, 6).requires_grad_(), seeded(1, 4, 6, seed=1)
    causal = torch.ones(1, 4, 4).tril().bool()
    values = L.relation_kl(x_s, x_t, 2, causal)
    (gradient,) = torch.autograd.grad(values[0, 1], x_s)
    assert gradient[0, :2].abs().sum() > 0
    assert not gradient[0, 2:].any()
    assert values[0, 0] == 0  # the first token sees itself alone


def test_a_copy_of_the_teacher_has_no_loss() -> None:
    x = seeded(2, 5, 12, dtype=torch.float32)
    maps = L.multi_head_relation(x, 3)
    values = [L.kl(x, x, 2.0), L.reverse_kl(x, x), L.generalized_jsd(x, x), L.logit_mse(x, x), L.state_mse(x, x)]
    values += [L.state_cosine(x, x), L.map_mse(maps, maps), L.map_kl(maps, maps), L.relation_kl(x, x, 3)]
    assert all(v.abs().max() < 1e-6 for v in values)


def test_no_gradient_into_the_teacher() -> None:
    x_s, x_t = seeded(2, 5, 12).requires_grad_(), seeded(2, 5, 12, seed=1).requires_grad_()
    total = L.kl(x_s, x_t) + L.generalized_jsd(x_s, x_t) + L.state_mse(x_s, x_t) + L.relation_kl(x_s, x_t, 3)
    total.sum().backward()
    assert x_s.grad is not None
    assert x_t.grad is None


def test_means() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert L.mean(values, mask).item() == 3.0
    assert L.row_mean(values, mask).tolist() == [1.5, 6.0]
    assert L.row_mean(values, torch.zeros(2, 3)).tolist() == [0.0, 0.0]


def test_half_precision_is_computed_in_fp32() -> None:
    z_s, z_t = seeded(4, 3000).bfloat16(), seeded(4, 3000, seed=1).bfloat16()
    assert L.kl(z_s, z_t).dtype == torch.float32
    assert torch.allclose(L.kl(z_s, z_t), L.kl(z_s.double(), z_t.double()).float(), rtol=1e-5)


def test_relations_are_fp32_under_autocast_too() -> None:
    x_s, x_t = seeded(2, 5, 12, dtype=torch.float32), seeded(2, 5, 12, seed=1, dtype=torch.float32)
    plain = L.relation_kl(x_s, x_t, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(L.relation_kl(x_s, x_t, 3), plain)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda: L.kl(torch.zeros(2, 5), torch.zeros(2, 6)), "one vocabulary"),
        (lambda: L.kl(torch.zeros(2, 5), torch.zeros(2, 5), 0.0), "above 0"),
        (lambda: L.generalized_jsd(torch.zeros(2, 5), torch.zeros(2, 5), 1.5), "from 0 to 1"),
        (lambda: L.state_mse(torch.zeros(1, 2, 5), torch.zeros(1, 2, 6)), "one width"),
        (lambda: L.map_kl(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3)), r"expected 4; got 2; .*version=2"),
        (lambda: L.relation_kl(torch.zeros(1, 2, 6), torch.zeros(1, 2, 8), 4), "student.*multiple of 4; got 6"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(loss, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        loss()

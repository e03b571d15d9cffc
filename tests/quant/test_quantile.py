"""Quantile quantization: equal use of codes, at a price on the tails."""

import pytest
import torch
from torch import Tensor

from featherweight.core.errors import InputError
from featherweight.quant import NF4, Quantile, packing


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))


def shares(scheme: Quantile | NF4, x: Tensor, bits: int = 4) -> Tensor:
    codes = packing.unpack(scheme.encode(x)["codes"], bits, x.numel())
    return codes.int().bincount(minlength=2**bits) / x.numel()


def entropy(share: Tensor) -> float:
    return float(-(share * share.clamp_min(1e-9).log2()).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_used_about_equally(normal: Tensor, bits: int) -> None:
    share = shares(Quantile(bits), normal, bits)
    assert entropy(share) > bits - 0.03
    if bits == 4:
        assert entropy(share) > entropy(shares(NF4(), normal))


def test_whatever_the_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    skew = torch.rand(1 << 16, generator=generator) ** 4
    assert entropy(shares(Quantile(), skew)) > 3.95
    assert entropy(shares(NF4(), skew)) < 3.3


def test_the_levels_are_quantiles_of_the_scaled_tensor() -> None:
    x = torch.linspace(-1, 1, 1600)
    table = Quantile(4, block=1600).encode(x)["table"]
    torch.testing.assert_close(table, -1 + (torch.arange(16) + 0.5) / 8, atol=2e-3, rtol=0)


def test_tails_are_poor() -> None:
    """The outermost level is the middle of the outermost sixteenth: what lies beyond is cut."""
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2))
    worst = {}
    for scheme in (Quantile(), NF4()):
        worst[type(scheme)] = float((scheme.decode(scheme.encode(x), (1 << 16,), torch.float32) - x).abs().max())
    assert worst[Quantile] > 1.5 * worst[NF4]


def test_a_sample_estimates_nearly_the_same(normal: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.quant import quantile

    exact = Quantile().encode(normal)["table"]
    monkeypatch.setattr(quantile, "SAMPLE", 1 << 14)
    torch.testing.assert_close(Quantile().encode(normal)["table"], exact, atol=0.02, rtol=0)


def test_estimates_from_a_sample_err_on_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare values are not in the sample: their level is missing."""
    from featherweight.quant import quantile

    x = torch.rand(1 << 14, generator=torch.Generator().manual_seed(3)) * 0.1
    x[1::16] = 1.0  # a sixteenth of all, in one phase of the sampling grid
    scheme = Quantile(4, block=1 << 14)

    def error_of_outliers() -> float:
        return float((scheme.decode(scheme.encode(x), (1 << 14,), torch.float32) - x)[1::16].abs().mean())

    exact = error_of_outliers()
    monkeypatch.setattr(quantile, "SAMPLE", 1 << 10)
    assert exact < 1e-6
    assert error_of_outliers() > 0.8


@pytest.mark.parametrize("fields", [{"bits": 1}, {"bits": 9}, {"block": 0}, {"block": "row"}], ids=str)
def test_wrong_fields(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="Quantile"):
        Quantile(**fields)  # type: ignore[arg-type]

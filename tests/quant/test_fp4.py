"""FP4's three variants: their values, the order of their codes, and bitsandbytes for its own."""

import pytest
import torch
from support.bitsandbytes import functional

from featherweight.core.errors import InputError
from featherweight.quant import FP4, packing
from featherweight.quant.codebooks import LEVELS, reach


def test_bitsandbytes_codes_are_bit_patterns() -> None:
    first = (0, 0.00520833, 0.66666669, 1, 0.33333334, 0.5, 0.16666667, 0.25)
    assert LEVELS["fp4-bitsandbytes"] == pytest.approx((*first, *(-v for v in first)), abs=1e-8)
    assert LEVELS["fp4-bitsandbytes"][1] == pytest.approx(0.0625 / 12)  # not the 0.25/12 that a formula would give


def test_e2m1_is_the_open_compute_format() -> None:
    """Sign, two exponent bits of bias 1, one bit of fraction, as the specification's table lists them."""

    def value(code: int) -> float:
        exponent, fraction = code >> 1 & 3, code & 1
        magnitude = 2.0 ** (exponent - 1) * (1 + fraction / 2) if exponent else fraction / 2
        return -magnitude if code & 8 else magnitude

    assert LEVELS["fp4-e2m1"] == pytest.approx([value(c) / 6 for c in range(16)])


def test_e3m0_is_powers_of_two() -> None:
    assert LEVELS["fp4-e3m0"][:8] == (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@pytest.mark.parametrize(("variant", "bound"), [("bitsandbytes", 1 / 6), ("e2m1", 1 / 6), ("e3m0", 1 / 4)])
def test_bounds(variant: str, bound: float) -> None:
    assert reach(f"fp4-{variant}") == pytest.approx(bound, abs=1e-7)


@pytest.mark.parametrize("variant", ["bitsandbytes", "e2m1", "e3m0"])
def test_fifteen_values_and_no_code_for_minus_zero(variant: str) -> None:
    x = torch.cat((torch.linspace(-1, 1, 4001), torch.tensor([0.0, -0.0, 1e-9, -1e-9])))
    codes = packing.unpack(FP4(block=5000, variant=variant).encode(x)["codes"], 4, x.numel())
    assert set(codes.tolist()) == set(range(16)) - {8}
    everything = {"codes": torch.arange(0, 256, 17, dtype=torch.uint8), "absmax": torch.ones(1)}
    decoded = FP4(variant=variant).decode(everything, (32,), torch.float32)
    assert decoded[16:18].tolist() == [0.0, 0.0]  # code 8 decodes: others' files hold it
    assert decoded.unique().numel() == 15


@pytest.mark.parametrize("block", [64, 256])
def test_bitsandbytes_gives_the_same_values(block: int) -> None:
    W = torch.randn(96, 256, generator=torch.Generator().manual_seed(2))
    codes, state = functional().quantize_4bit(W, blocksize=block, quant_type="fp4")
    theirs = packing.unpack(codes.view(-1), 4, W.numel())
    packed = FP4(block=block).encode(W)
    ours = packing.unpack(packed["codes"], 4, W.numel())
    assert ours.equal(torch.where(theirs == 8, 0, theirs))
    assert FP4(block=block).decode(packed, (96, 256), torch.float32).equal(functional().dequantize_4bit(codes, state))


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'e2m1'"):
        FP4(variant="e2m2")

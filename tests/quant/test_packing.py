"""Streams of bits: by hand, back again, and of no byte too many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.quant import packing


@pytest.mark.parametrize(
    ("bits", "codes", "stream"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1], [0b10110001]),
        (2, [3, 0, 1, 2], [0b11000110]),
        (3, [7, 0, 1, 2, 3, 4, 5, 6], [0b11100000, 0b10100111, 0b00101110]),
        (4, [15, 1, 7], [0xF1, 0x70]),
        (5, [31, 0], [0b11111000, 0b00000000]),
        (8, [200, 3], [200, 3]),
    ],
)
def test_by_hand(bits: int, codes: list[int], stream: list[int]) -> None:
    assert packing.pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist() == stream


def test_the_tail_is_filled_with_a_given_code() -> None:
    assert packing.pack(torch.tensor([15], dtype=torch.uint8), 4, fill=7).tolist() == [0xF7]
    assert packing.pack(torch.tensor([1], dtype=torch.uint8), 2, fill=2).tolist() == [0b01101010]


@settings(deadline=None, derandomize=True, database=None)
@given(bits=st.integers(1, 8), n=st.integers(1, 300), seed=st.integers(0, 99))
def test_unpacking_is_the_inverse(bits: int, n: int, seed: int) -> None:
    codes = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = packing.pack(codes, bits)
    assert packed.shape == (packing.size(n, bits),) == (-(-n * bits // 8),)
    assert packing.unpack(packed, bits, n).equal(codes)

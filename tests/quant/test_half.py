"""Half precision: rounding to nearest, and no finite weight made infinite."""

import pytest
import torch

from featherweight.core.errors import InputError
from featherweight.quant import Half


def test_it_is_a_cast() -> None:
    W = torch.randn(5, 7)
    assert Half().encode(W)["values"].equal(W.bfloat16())
    assert Half("fp16").encode(W)["values"].equal(W.half())
    assert Half().size((5, 7)) == 70


def test_a_weight_beyond_half_precision_is_an_error() -> None:
    W = torch.tensor([1.0, -7e4, 1e6, torch.inf])
    with pytest.raises(InputError, match=r"would become infinite.*at most 65504; got 2 of 4.*largest 1e\+06; use Half"):
        Half("fp16").encode(W)
    assert Half().encode(W)["values"].isinf().tolist() == [False, False, False, True]


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(InputError, match=r"Half.dtype.*choose from bf16, fp16"):
        Half("float32")

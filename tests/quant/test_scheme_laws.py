"""Every scheme on every shape: the error within its bound, the layout as said, zero on zero, NaN in sight."""

import os
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schemes import DTYPES, SCHEMES, fill, shapes, weights
from torch import Tensor

from featherweight.core.errors import InputError
from featherweight.quant import Scheme, blocks, clip, coded, packing

every = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
SWEEP = os.environ.get("FEATHERWEIGHT_TESTS") == "sweep"
few = settings(max_examples=200 if SWEEP else 10, deadline=None, derandomize=True, database=None)
COMPILED = (
    "half", "absmax", "absmax-4bits", "absmax-3bits-tensor", "zeropoint", "zeropoint-3bits", "zeropoint-float",
    "nf4-double", "fp4-e2m1", "blockwise-nf3", "quantile",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Clipping by error tries a tenth of its grid here: the laws do not depend on how fine that is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "GRID", 10)
        yield


def roundtrip(scheme: Scheme, W: Tensor) -> Tensor:
    return scheme.decode(scheme.encode(W), tuple(W.shape), torch.float32)


@every
@few
@given(W=weights())
def test_error_is_within_the_bound(scheme: Scheme, W: Tensor) -> None:
    error, bound = (W.float() - roundtrip(scheme, W)).abs(), scheme.bound(W)
    assert bound.isfinite().all()
    assert (error <= bound).all(), float((error - bound).max())


@every
@few
@given(W=weights())
def test_layout_and_size_are_what_encode_gives(scheme: Scheme, W: Tensor) -> None:
    packed, shape = scheme.encode(W), tuple(W.shape)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in packed.items()} == scheme.layout(shape)
    assert scheme.size(shape) == sum(t.nbytes for t in packed.values())
    assert all(t.is_contiguous() and not t.requires_grad for t in packed.values())


@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.idempotent], ids=repr)
@few
@given(W=weights((torch.float32,)))
def test_what_was_decoded_encodes_to_the_same_codes(scheme: Scheme, W: Tensor) -> None:
    packed = scheme.encode(W)
    again = scheme.encode(scheme.decode(packed, tuple(W.shape), torch.float32))
    codes = "codes" if "codes" in packed else "values"
    if W.abs().max() > 1e-30:  # steps that are no normal float32 numbers are rounded themselves
        assert packed[codes].equal(again[codes])


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decoding_to_a_dtype_is_a_cast_of_float32(scheme: Scheme, dtype: torch.dtype) -> None:
    W = fill("normal", (5, 70), torch.Generator().manual_seed(1))
    packed = scheme.encode(W)
    assert scheme.decode(packed, (5, 70), dtype).equal(scheme.decode(packed, (5, 70), torch.float32).to(dtype))


@every
@few
@given(shape=shapes(), dtype=st.sampled_from(DTYPES))
def test_zeros_stay_zeros(scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert (roundtrip(scheme, torch.zeros(shape, dtype=dtype)) == 0).all()


def exact(scheme: Scheme) -> bool:
    """Whether 0 has a code of its own beside other values."""
    return not (type(scheme).__name__ == "Quantile" or getattr(scheme, "zero", "") == "float")


@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if exact(s)], ids=repr)
@few
@given(W=weights(), seed=st.integers(0, 99))
def test_a_zero_among_others_stays_zero(scheme: Scheme, W: Tensor, seed: int) -> None:
    holes = torch.rand(W.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert (roundtrip(scheme, W.masked_fill(holes, 0))[holes] == 0).all()


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(3, 200), (40, 160)])
def test_a_nan_or_infinity_is_seen_and_spoils_no_other_block(
    scheme: Scheme, bad: float, shape: tuple[int, int]
) -> None:
    W = fill("normal", shape, torch.Generator().manual_seed(0))
    clean = roundtrip(scheme, W)
    W.view(-1)[130] = bad
    back = roundtrip(scheme, W).view(-1)
    shared = shared_with(scheme, shape)
    inside = torch.arange(back.numel()) // shared == 130 // shared
    assert not back[inside].isfinite().any()
    assert back[~inside].isfinite().all()
    if type(scheme).__name__ != "Quantile" and not getattr(scheme, "double", False):
        assert back[~inside].equal(clean.view(-1)[~inside])


def shared_with(scheme: Any, shape: tuple[int, int]) -> int:
    """Elements that stand and fall together."""
    if type(scheme).__name__ == "Half":
        return 1
    per = getattr(scheme, "per", None) or getattr(scheme, "block", 1)
    return blocks.elements(per, shape) * (256 if getattr(scheme, "double", False) else 1)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if getattr(s, "per", "") == "row"], ids=repr)
def test_rows_are_encoded_each_by_itself(scheme: Scheme) -> None:
    W = fill("heavy", (9, 75), torch.Generator().manual_seed(3))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    assert roundtrip(scheme, W[order]).equal(roundtrip(scheme, W)[order])


@every
def test_strides_and_gradients_do_not_matter(scheme: Scheme) -> None:
    W = fill("normal", (30, 50), torch.Generator().manual_seed(5))
    turned = scheme.encode(W.t().requires_grad_())
    for name, tensor in scheme.encode(W.t().contiguous()).items():
        assert tensor.equal(turned[name])


@every
def test_large_tensors_are_encoded_in_pieces_to_the_same(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    W = fill("heavy", (37, 211), torch.Generator().manual_seed(6)).bfloat16()
    whole = scheme.encode(W)
    monkeypatch.setattr(blocks, "PIECE", 1024)
    monkeypatch.setattr(coded, "PIECE", 1024)
    monkeypatch.setattr(packing, "PIECE", 1024)
    for name, tensor in scheme.encode(W).items():
        assert tensor.equal(whole[name]), name


@every
@pytest.mark.parametrize("shape", [(12, 64), (10, 48), (6, 1), (9, 75)])
def test_rows_decode_alone(scheme: Scheme, shape: tuple[int, int]) -> None:
    W = fill("normal", shape, torch.Generator().manual_seed(7))
    packed, index = scheme.encode(W), torch.tensor([5, 0, 3, 3])
    for dtype in DTYPES:
        rows = scheme.rows(packed, shape, index, dtype)
        assert rows.equal(scheme.decode(packed, shape, dtype)[index])
    assert scheme.rows(packed, shape, index[:0], torch.float32).shape == (0, shape[1])


@every
def test_file_form_and_repr_are_the_scheme(scheme: Scheme) -> None:
    from featherweight import quant

    assert Scheme.from_dict(scheme.to_dict()) == scheme
    assert eval(repr(scheme), vars(quant)) == scheme


@pytest.mark.parametrize("scheme", [SCHEMES[name] for name in COMPILED], ids=COMPILED)
def test_decoding_compiles_whole(scheme: Scheme) -> None:
    W = fill("normal", (6, 80), torch.Generator().manual_seed(8))
    packed = scheme.encode(W)

    def decode(**tensors: Tensor) -> Tensor:
        return scheme.decode(tensors, (6, 80), torch.float32)

    torch._dynamo.reset()
    compiled = torch.compile(decode, fullgraph=True, backend="eager")
    assert compiled(**packed).equal(decode(**packed))


@every
@pytest.mark.parametrize(
    ("W", "said"),
    [
        (torch.tensor(1.0), "scalar"),
        (torch.zeros(3, 0), "empty"),
        (torch.zeros(3, 4, dtype=torch.int32), "floating-point"),
        (torch.zeros(3, 4, dtype=torch.complex64), "floating-point"),
    ],
    ids=["scalar", "empty", "integers", "complex"],
)
def test_what_no_scheme_can_hold_is_an_error(scheme: Scheme, W: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        scheme.encode(W)


@every
def test_double_precision_is_rounded_first(scheme: Scheme) -> None:
    W = fill("normal", (4, 66), torch.Generator().manual_seed(9))
    for name, tensor in scheme.encode(W.double()).items():
        assert tensor.equal(scheme.encode(W)[name])


def test_every_size_of_block_and_width() -> None:
    """Widths 1 to 200 against blocks of 32 to 4096, the formula done by hand for each element."""
    from featherweight.quant import NF4
    from featherweight.quant.nf4 import NF4_TABLE

    table, generator = torch.tensor(NF4_TABLE), torch.Generator().manual_seed(10)
    for width in range(1, 201):
        for block in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            W = torch.randn(3, width, generator=generator)
            packed = NF4(block=block).encode(W)
            nibbles = torch.stack((packed["codes"] >> 4, packed["codes"] & 15), 1).view(-1)
            assert nibbles.numel() % 2 == 0
            if prod(W.shape) % 2:
                assert nibbles[-1] == 7
            scales = torch.stack([part.abs().max() for part in W.flatten().split(block)])
            by_hand = table[nibbles[: W.numel()].int()] * scales[torch.arange(W.numel()) // block]
            assert packed["absmax"].equal(scales)
            assert NF4(block=block).decode(packed, (3, width), torch.float32).equal(by_hand.view(3, width))


def test_fields_are_checked_all_at_once() -> None:
    scheme = SCHEMES["blockwise"]
    with pytest.raises(InputError) as caught:
        replace(scheme, block=0, double=1, clip="max", table="foo")  # type: ignore[call-arg]
    assert len(caught.value.problems) == 4


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_the_one_of_the_decoded_weight(scheme: Scheme, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(11)
    for shape in ((6, 64), (5, 48), (3, 7)):
        packed = scheme.encode(fill("normal", shape, generator))
        x, bias = torch.randn(2, 4, shape[1], generator=generator).to(dtype), torch.randn(shape[0]).to(dtype)
        for b in (bias, None):
            y = torch.nn.functional.linear(x, scheme.decode(packed, shape, dtype), b)
            torch.testing.assert_close(scheme.product(x, packed, shape, b), y)

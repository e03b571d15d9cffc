"""Block-wise k-bit: an outlier spoils its block alone, every table has its widths, dynamic is bitsandbytes' 8 bits."""

import pytest
import torch
from support.bitsandbytes import functional

from featherweight.core.errors import InputError
from featherweight.quant import Blockwise
from featherweight.quant.blockwise import TABLES
from featherweight.quant.codebooks import LEVELS, reach


def test_an_outlier_spoils_its_own_block_only() -> None:
    x = torch.randn(640, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[70] = 1e4
    one, other = (Blockwise().decode(Blockwise().encode(v), (640,), torch.float32) for v in (x, spoiled))
    assert other[:64].equal(one[:64])
    assert other[128:].equal(one[128:])
    assert int((other[64:128] != 0).sum()) == 1


def test_integers_are_evenly_spaced() -> None:
    for bits in TABLES["int"]:
        top = 2 ** (bits - 1) - 1
        levels = torch.tensor(LEVELS[f"int{bits}"])
        torch.testing.assert_close(levels, torch.arange(-top - 1, top + 1) / top)
        assert reach(f"int{bits}") == pytest.approx(1 / (2 * top), rel=1e-5)


def test_the_worked_example_at_8_bits() -> None:
    codes = Blockwise(bits=8).encode(torch.tensor([-5.2, 4.3, 1.1, 0.0]))["codes"]
    assert (codes.int() - 128).tolist() == [-127, 105, 27, 0]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_sorted_and_holds_zero(table: str) -> None:
    for bits in TABLES[table]:
        levels = LEVELS[f"{table}{bits}"]
        assert len(set(levels)) == 2**bits
        assert list(levels) == sorted(levels)
        assert 0.0 in levels


@pytest.mark.parametrize("block", [64, 256, 4096])
def test_dynamic_is_bitsandbytes(block: int) -> None:
    x = torch.randn(8192, generator=torch.Generator().manual_seed(1))
    codes, state = functional().quantize_blockwise(x, blocksize=block)
    scheme = Blockwise(bits=8, table="dynamic", block=block)
    packed = scheme.encode(x)
    assert packed["absmax"].equal(state.absmax)
    ours, theirs = scheme.decode(packed, (8192,), torch.float32), functional().dequantize_blockwise(codes, state)
    same = packed["codes"] == codes
    assert ours[same].equal(theirs[same])
    assert float(same.float().mean()) > 0.997  # its table of 65,536 cells misses the nearest level near 0 and at ties
    assert ((ours - x).abs() <= (theirs - x).abs() + 1e-6).all()


def test_blocks_straddle_rows() -> None:
    W = torch.randn(10, 48, generator=torch.Generator().manual_seed(2))
    flat = Blockwise().encode(W.view(-1))
    for name, tensor in Blockwise().encode(W).items():
        assert tensor.equal(flat[name])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block": 0}, "Blockwise.block.*at least 1; got 0"),
        ({"block": -64}, "Blockwise.block.*got -64"),
        ({"block": 64.0}, "Blockwise.block.*got 64.0"),
        ({"block": "64"}, "Blockwise.block.*got '64'"),
        ({"bits": 3, "table": "af"}, "'af' has no such width.*expected 4; got 3"),
        ({"bits": 9}, "'int' has no such width"),
        ({"table": "dynamic"}, "expected 8; got 4"),
        ({"table": "loyd"}, "did you mean 'lloyd'"),
        ({"double": "yes"}, "Blockwise.double.*true or false"),
        ({"clip": -1}, "Blockwise.clip"),
    ],
    ids=str,
)
def test_wrong_fields(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Blockwise(**fields)  # type: ignore[arg-type]

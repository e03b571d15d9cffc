"""bitsandbytes' state dicts: bytes survive, decoded values are the formula's, damage is named all at once.

bitsandbytes itself is the oracle for what it writes, and for what it decodes where it is right: on a CPU with AVX-512
its 4-bit decode is wrong when in_features is a multiple of 16 but not of the block (K = 32, 48, 80, 96 ... at 64).
"""

import json

import pytest
import torch

from featherweight.core.errors import InputError
from featherweight.interop.quantized.bnb4 import STATE, read4, write4
from featherweight.interop.quantized.bnb8 import read8, write8

bnb = pytest.importorskip("bitsandbytes")

RIGHT = [(48, 64), (5, 7), (3, 200), (64, 128), (1, 1), (7, 192)]  # (N, K) where bitsandbytes' CPU decode is right
WRONG = [(48, 32), (8, 80), (16, 112)]


def linear4(N: int, K: int, kind: str = "nf4", double: bool = True, dtype: torch.dtype = torch.float32, **more: object):
    module = bnb.nn.Linear4bit(K, N, compress_statistics=double, quant_type=kind, **more)
    g = torch.Generator().manual_seed(N * 1000 + K)
    module.weight.data = torch.randn(N, K, generator=g).to(dtype)
    return module.to("cpu")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", RIGHT + WRONG, ids=str)
def test_a_4_bit_file_survives_byte_for_byte(kind: str, double: bool, shape: tuple[int, int]) -> None:
    saved = {k: v for k, v in linear4(*shape, kind, double).state_dict().items() if k.startswith("weight")}
    again = write4(read4(saved, ""), "")
    assert list(again) == list(saved)
    for name, tensor in saved.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_bytes_kept_under_another_dtype_survive(storage: torch.dtype) -> None:
    saved = linear4(48, 64, quant_storage=storage).state_dict()
    again = write4(read4(saved, ""), "", storage)
    assert again["weight"].dtype is storage
    assert torch.equal(again["weight"].view(torch.uint8), saved["weight"].view(torch.uint8))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", RIGHT, ids=str)
def test_what_a_4_bit_file_says_is_what_bitsandbytes_decodes(kind: str, double: bool, shape: tuple[int, int]) -> None:
    module = linear4(*shape, kind, double)
    weight = read4(module.state_dict(), "")
    nibbles = torch.stack((weight.codes >> 4, weight.codes & 15), 1).flatten()[: shape[0] * shape[1]]
    W = (weight.table[nibbles.int()] * weight.scales().repeat_interleave(weight.block)[: nibbles.numel()]).view(shape)
    theirs = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    assert torch.equal(W, theirs)


def test_an_8_bit_file_survives_byte_for_byte_and_decodes_alike() -> None:
    module = bnb.nn.Linear8bitLt(80, 48, has_fp16_weights=False)
    module.weight.data = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    module = module.to("cpu")
    saved = {k: v for k, v in module.state_dict().items() if k != "bias"}
    weight = read8(saved, "")
    again = write8(weight, "")
    assert sorted(again) == sorted(saved)
    assert all(torch.equal(again[k], saved[k]) for k in saved)
    theirs = bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    assert torch.allclose(weight.codes * weight.absmax[:, None] / 127, theirs, rtol=1e-6, atol=0)


def test_damage_to_a_4_bit_weight_is_named_all_at_once() -> None:
    saved = {f"h.0.{k}": v for k, v in linear4(48, 64).state_dict().items()}
    saved["h.0.weight"] = saved["h.0.weight"][:-1]
    saved["h.0.weight.absmax"] = saved["h.0.weight.absmax"].float()
    saved["h.0.weight.nested_absmax"] = torch.tensor([float("nan")])
    del saved["h.0.weight.quant_map"]
    with pytest.raises(InputError) as caught:
        read4(saved, "h.0")
    where = [p.where for p in caught.value.problems]
    assert where == ["h.0.weight", "h.0.weight.quant_map", "h.0.weight.absmax", "h.0.weight.nested_absmax"]
    assert "1536" in str(caught.value)
    assert "got uint8 (1535, 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": [48, 65]}, r"weight: .*expected bytes \(1560,\); got uint8 \(1536, 1\)"),
        ({"blocksize": 0}, "not a size"),
        ({"quant_type": "int4"}, "key and record disagree"),
        ({"dtype": "float99"}, "unknown dtype"),
        ({"blocksize": "64"}, "blocksize.*expected int"),
        ({"nested_offset": None}, "scales of scales without"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_record_that_does_not_fit_is_refused(change: dict[str, object], match: str) -> None:
    saved = dict(linear4(48, 64).state_dict())
    key = f"weight.{STATE}nf4"
    said = json.loads(bytes(saved[key].tolist())) | change
    saved[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    with pytest.raises(InputError, match=match):
        read4(saved, "")


def test_a_record_that_is_no_record_is_refused() -> None:
    saved = dict(linear4(48, 64).state_dict())
    saved[f"weight.{STATE}nf4"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    with pytest.raises(InputError, match="not JSON"):
        read4(saved, "")
    del saved[f"weight.{STATE}nf4"]
    with pytest.raises(InputError, match="without its record"):
        read4(saved, "")


def test_damage_to_an_8_bit_weight_is_named_all_at_once() -> None:
    codes = torch.zeros(4, 8, dtype=torch.int8)
    with pytest.raises(InputError) as caught:
        read8({"a.weight": codes, "a.SCB": torch.ones(3), "a.weight_format": torch.tensor(2, dtype=torch.uint8)}, "a")
    assert [p.where for p in caught.value.problems] == ["a.SCB", "a.weight_format"]
    with pytest.raises(InputError, match=r"a.weight.*int8.*got float32 \(4, 8\)"):
        read8({"a.weight": codes.float()}, "a")

"""GPTQ and AWQ tensors: words and numbers worked one by one, both conventions of zero points, mislabels, damage."""

from typing import Any

import pytest
import torch
from torch import Tensor

from featherweight.core.errors import InputError
from featherweight.interop.quantized.gptq import config_of, layout_of, read_gptq, write_gptq

RAW_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ: which value lies at place 0, 1, ... of a word


class Raw:
    """A weight as integers: codes (N, K), zeros (G, N), scales (G, N) of fp16 values, group (K,)."""

    def __init__(self, bits: int, N: int, K: int, size: int, sym: bool = False, act_order: bool = False):
        g = torch.Generator().manual_seed(bits * N + K)
        self.bits, self.size, G = bits, size, -(-K // size)
        self.codes = torch.randint(0, 2**bits, (N, K), generator=g)
        self.zeros = torch.full((G, N), 2 ** (bits - 1)) if sym else torch.randint(1, 2**bits, (G, N), generator=g)
        self.scales = torch.rand(G, N, generator=g).half() + 0.01
        self.group = torch.arange(K) // size
        if act_order:
            self.group = self.group[torch.randperm(K, generator=g)]

    def file(self, form: str = "gptq_v2") -> dict[str, Tensor]:
        """By the layout's definition, one Python integer a row."""
        return {
            "qweight": words(self.codes, self.bits).T.contiguous(),
            "qzeros": words(self.zeros - (form == "gptq") * 1, self.bits),
            "scales": self.scales,
            "g_idx": self.group.int(),
        }

    def decoded(self) -> Tensor:
        """W[n, k] = scales[g, n] (q - z), one number at a time."""
        W = torch.empty(self.codes.shape)
        for n in range(W.shape[0]):
            for k, g in enumerate(self.group.tolist()):
                W[n, k] = float(self.scales[g, n]) * (int(self.codes[n, k]) - int(self.zeros[g, n]))
        return W


def words(rows: Tensor, bits: int) -> Tensor:
    """Rows of integers -> rows of int32 words: each row is one long integer, value i at bit i · bits."""
    long = [sum(v << (i * bits) for i, v in enumerate(row)) for row in rows.tolist()]
    count = rows.shape[1] * bits // 32
    cut = [[x >> (32 * i) & 0xFFFFFFFF for i in range(count)] for x in long]
    return torch.tensor([[w - (w >> 31 << 32) for w in row] for row in cut], dtype=torch.int32)


def config(bits: int, size: int, form: str, sym: bool = False) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": sym, "checkpoint_format": form}


def decoded(file: dict[str, Tensor], said: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    scheme, packed = read_gptq(file, "", layout_of(said))
    for name, (dtype, dims) in scheme.layout(shape).items():
        assert (packed[name].dtype, tuple(packed[name].shape)) == (dtype, dims)
    assert len(packed) == len(scheme.layout(shape))
    return scheme.decode(packed, shape, torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("size", "act_order"), [(32, False), (32, True), (64, False)])
@pytest.mark.parametrize("sym", [False, True])
def test_a_file_decodes_to_its_definition_and_survives(
    bits: int, form: str, size: int, act_order: bool, sym: bool
) -> None:
    raw = Raw(bits, 32, 64, size, sym, act_order)
    file, said = raw.file(form), config(bits, size, form, sym)
    assert torch.equal(decoded(file, said, (32, 64)), raw.decoded())
    again = write_gptq(*read_gptq(file, "", layout_of(said)), (32, 64), "", form)
    assert list(again) == list(file)
    assert all(torch.equal(again[k], file[k]) and again[k].dtype == file[k].dtype for k in file)


def test_words_by_hand() -> None:
    assert words(torch.arange(8)[None], 4).tolist() == [[0x76543210]]
    values = torch.zeros(1, 32, dtype=torch.long)
    values[0, 10], values[0, 21] = 0b110, 0b101  # the two that straddle words
    assert [w & 0xFFFFFFFF for w in words(values, 3)[0].tolist()] == [0x80000000, 0x80000001, 0b10]


def test_symmetric_zeros_are_the_published_words() -> None:
    scheme, packed = read_gptq(Raw(4, 32, 64, 64, sym=True).file(), "", layout_of(config(4, 64, "gptq_v2", True)))
    assert scheme.symmetric
    for form, word in (("gptq", 0x77777777), ("gptq_v2", 0x88888888)):
        zeros = write_gptq(scheme, packed, (32, 64), "", form)["qzeros"]
        assert {w & 0xFFFFFFFF for w in zeros.flatten().tolist()} == {word}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("written", "label"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_a_mislabeled_symmetric_file_is_read_for_what_it_is(bits: int, written: str, label: str) -> None:
    raw = Raw(bits, 32, 64, 32, sym=True)
    assert torch.equal(decoded(raw.file(written), config(bits, 32, label, sym=True), (32, 64)), raw.decoded())


def test_an_asymmetric_file_is_what_its_label_says() -> None:
    raw = Raw(4, 32, 64, 64, sym=True)  # zeros that happen to look symmetric
    W = decoded(raw.file("gptq_v2"), config(4, 64, "gptq", sym=False), (32, 64))
    raw.zeros = raw.zeros + 1
    assert torch.equal(W, raw.decoded())


def test_v1_zeros_wrap_around() -> None:
    raw = Raw(4, 32, 64, 64)
    raw.zeros[0, 3] = 0
    file = raw.file("gptq_v2")
    stored = raw.zeros.clone() - 1
    stored[0, 3] = 15
    file["qzeros"] = words(stored, 4)
    assert torch.equal(decoded(file, config(4, 64, "gptq"), (32, 64)), raw.decoded())


def test_one_group_and_no_g_idx() -> None:
    raw = Raw(4, 32, 64, 64)
    file = raw.file()
    del file["g_idx"]
    assert torch.equal(decoded(file, config(4, -1, "gptq_v2"), (32, 64)), raw.decoded())


def test_a_last_group_may_be_short() -> None:
    raw = Raw(4, 8, 80, 64)
    assert torch.equal(decoded(raw.file(), config(4, 64, "gptq_v2"), (8, 80)), raw.decoded())


def test_v1_cannot_say_zero() -> None:
    raw = Raw(4, 32, 64, 64)
    raw.zeros[0, 3] = 0
    scheme, packed = read_gptq(raw.file(), "", layout_of(config(4, 64, "gptq_v2")))
    with pytest.raises(InputError, match=r'h.qzeros: .*cannot say 0.*write "gptq_v2"'):
        write_gptq(scheme, packed, (32, 64), "h", "gptq")
    assert torch.equal(
        decoded(write_gptq(scheme, packed, (32, 64), ""), config(4, 64, "gptq_v2"), (32, 64)), raw.decoded()
    )


def test_awq_by_its_definition() -> None:
    raw = Raw(4, 16, 6, 3)
    order = [8 * b + i for b in range(2) for i in RAW_ORDER]
    file = {"qweight": words(raw.codes.T[:, order], 4), "qzeros": words(raw.zeros[:, order], 4), "scales": raw.scales}
    said = {"quant_method": "awq", "bits": 4, "group_size": 3, "zero_point": True, "version": "gemm"}
    assert torch.equal(decoded(file, said, (16, 6)), raw.decoded())
    with pytest.raises(InputError, match=r"version: .*expected gemm; got 'gemv'"):
        layout_of(said | {"version": "GEMV"})


def test_the_config_says_the_scheme_again() -> None:
    said = config(4, 32, "gptq_v2") | {"desc_act": True, "damp_percent": 0.05}
    scheme, _ = read_gptq(Raw(4, 32, 64, 32, act_order=True).file(), "", layout_of(said))
    assert (scheme.act_order, scheme.static_groups, scheme.damp) == (True, False, 0.05)
    assert layout_of(config_of([scheme])) == layout_of(said)
    fixed, _ = read_gptq(Raw(4, 32, 64, 32).file(), "", layout_of(said))  # inputs by activation, groups of neighbors
    assert (fixed.act_order, fixed.static_groups) == (True, True)


def test_sizes_that_fill_no_words_are_refused_at_once() -> None:
    scheme, packed = read_gptq(Raw(4, 32, 64, 64).file(), "", layout_of(config(4, 64, "gptq_v2")))
    odd = {"codes": packed["codes"][:12, :30], "scales": packed["scales"][:, :12], "zeros": packed["zeros"][:, :6]}
    with pytest.raises(InputError) as caught:
        write_gptq(scheme, odd, (12, 60), "h.0")
    assert [p.where for p in caught.value.problems] == ["h.0.out_features", "h.0.in_features"]


def test_damage_is_named_all_at_once() -> None:
    file = {f"h.0.{k}": t for k, t in Raw(4, 32, 64, 32).file().items()}
    file["h.0.qzeros"] = file["h.0.qzeros"][:1]
    file["h.0.scales"][0, 0] = float("inf")
    file["h.0.g_idx"][5] = 7
    layout = layout_of(config(4, 32, "gptq"))
    with pytest.raises(InputError) as caught:
        read_gptq(file, "h.0", layout)
    assert [p.where for p in caught.value.problems] == ["h.0.qzeros", "h.0.scales", "h.0.g_idx"]
    del file["h.0.qweight"]
    with pytest.raises(InputError, match=r"h.0.qweight: .*expected an int32 matrix; got none"):
        read_gptq(file, "h.0", layout)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bits": 5}, "bits: .*expected 2 or 3 or 4 or 8; got 5"),
        ({"checkpoint_format": "marlin"}, "got 'marlin'.*laid out for one kernel"),
        ({"group_size": "128"}, "group_size: .*expected a number, or -1; got '128'"),
        ({"bits": 8}, r"scales: .*expected \(1, 32\), with 8 bits in groups of 32; got float16 \(2, 32\)"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_gptq(Raw(4, 32, 64, 32).file(), "", layout_of(config(4, 32, "gptq") | change))

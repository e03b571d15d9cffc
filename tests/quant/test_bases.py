"""An adapter and its base: the same codes are the same base, another number format is said, another model refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.codes import quantized_modules, with_codes
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.fingerprint import Fingerprint, differences, fingerprint, strangeness
from featherweight.quant import NF4, Absmax

ARCHS = ("llama", "gpt2", "bert")
INT8 = Absmax(bits=8, per="row")


def trained_on(model: Any) -> Any:
    torch.manual_seed(0)
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), head=False)
    disturb(model)
    return model


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_codes_are_the_same_base(arch: str) -> None:
    """Under adapters, after a copy, in another dtype; names, shapes and counts are those of the float base."""
    saved = fingerprint(with_codes(tiny(arch)))
    assert saved.scheme == "NF4()"
    assert fingerprint(trained_on(with_codes(tiny(arch)))) == saved
    assert Fingerprint(**saved.to_dict()) == saved
    plain = fingerprint(tiny(arch))
    assert (plain.names, plain.parameters, plain.scheme) == (saved.names, saved.parameters, "")
    other = with_codes(tiny(arch)).to(torch.bfloat16)
    assert differences(other, saved) == []
    assert strangeness(other, saved) is None


def test_other_codes_are_another_base() -> None:
    saved = fingerprint(with_codes(tiny("llama")))
    other = with_codes(tiny("llama"))
    quantized_modules(other)["model.layers.1.mlp.up_proj"].packed["codes"][3] ^= 1
    (problem,) = differences(other, saved)
    assert "in its values) is model.layers.1.mlp.up_proj.weight" in problem.what


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("there", "here"), [(NF4(), None), (None, NF4()), (NF4(), INT8)], ids=str)
def test_another_number_format_is_said_and_no_error(
    arch: str, there: Any, here: Any, tmp_path: Path, caplog: Any
) -> None:
    """QLoRA's adapters are used on float bases all the time; it is said what differs."""
    one = tiny(arch) if there is None else with_codes(tiny(arch), there)
    fw.save(trained_on(one), tmp_path)
    two = tiny(arch) if here is None else with_codes(tiny(arch), here)
    fw.load(two, tmp_path)
    expected, got = ("floating point" if s is None else repr(s) for s in (there, here))
    assert f"trained over weights in another number format; expected {expected}; got {got}" in caplog.text
    near = (logits(two, inputs(arch)) - logits(one, inputs(arch))).norm() / logits(one, inputs(arch)).norm()
    assert 0 < near < 0.5


def test_another_model_is_told_apart_by_what_neither_keeps_as_codes(tmp_path: Path) -> None:
    fw.save(trained_on(with_codes(tiny("llama"))), tmp_path)
    other = tiny("llama")
    with torch.no_grad():
        other.model.norm.weight.mul_(1.1)
    with pytest.raises(fw.InputError, match=r"belongs to another base.*model\.norm\.weight"):
        fw.load(other, tmp_path)


def test_the_same_format_says_nothing(tmp_path: Path, caplog: Any) -> None:
    one = trained_on(with_codes(tiny("gpt2")))
    fw.save(one, tmp_path)
    two = fw.load(with_codes(tiny("gpt2")), tmp_path)
    assert torch.equal(logits(one, inputs("gpt2")), logits(two, inputs("gpt2")))
    assert not caplog.text

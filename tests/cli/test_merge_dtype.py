"""`fw merge`: the folder has the base's dtypes and size, each weight is rounded once, and what that cost is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.merging import adapted, four_words, held
from support.mixtures import mixture
from support.models import disturb, tiny

import featherweight as fw
from featherweight.cli.main import main
from featherweight.interop.rounding import Dtypes, cost, rounded
from featherweight.interop.stream import checkpoint

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def mixed(model: Any) -> Any:
    """In bfloat16, its norms in float32, as some checkpoints are."""
    model = model.to(BF16)
    for name, p in model.named_parameters():
        if "norm" in name.lower():
            p.data = p.data.float()
    return model


def merge(adapter: Path, output: Path, *flags: str) -> int:
    return main(["merge", "--adapter", str(adapter), "--output", str(output), *flags])


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    return {name: stored.dtype for name, stored in checkpoint(folder).items()}


@pytest.mark.parametrize(("model", "method"), [
    (lambda: tiny("llama"), fw.LoRA(rank=2, targets="linear")),
    (lambda: tiny("bert"), fw.LoRA(rank=2)),
    (lambda: mixture("mixtral"), fw.ExpertLoRA(rank=2, targets="linear")),  # a tensor of the file for each expert
])  # fmt: skip
def test_as_the_base_rounded_once(model: Any, method: Any, tmp_path: Path) -> None:
    """A mixed checkpoint: every tensor has the dtype it had, and its values are those of float32, rounded."""
    adapter = adapted(mixed(model()), tmp_path, method)
    assert merge(adapter, tmp_path / "out") == 0
    assert dtypes(tmp_path / "out") == dtypes(tmp_path / "base")
    assert set(dtypes(tmp_path / "out").values()) == {BF16, FP32}
    fw.merge(fw.load_model(adapter)).save_pretrained(tmp_path / "float")
    mine, exact = held(tmp_path / "out"), held(tmp_path / "float")
    assert all(torch.equal(t, exact[k].to(t.dtype)) for k, t in mine.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_in_memory_in_the_files_dtype_it_is_the_same(tmp_path: Path) -> None:
    """A live model in bfloat16 adds in the adapter's float32 and rounds once too."""
    adapter = adapted(tiny("llama").to(BF16), tmp_path, fw.LoRA(rank=2, targets="linear"))
    assert merge(adapter, tmp_path / "out") == 0
    fw.merge(fw.load_model(adapter, dtype="auto")).save_pretrained(tmp_path / "memory")
    mine, theirs = held(tmp_path / "out"), held(tmp_path / "memory")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], t) for k, t in theirs.items())


@pytest.mark.parametrize("kind", [BF16, FP16])
def test_as_peft_merges_and_saves(kind: torch.dtype, tmp_path: Path) -> None:
    """The same tensors in the same dtype, both within half a unit in the last place of the exact sum."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = adapted(tiny("llama").to(kind), tmp_path, fw.LoRA(rank=2, targets="linear"))
    assert merge(adapter, tmp_path / "out") == 0
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=kind), adapter)
    theirs.merge_and_unload().save_pretrained(tmp_path / "peft")
    fw.merge(fw.load_model(adapter, dtype=torch.float64)).save_pretrained(tmp_path / "exact")
    ours, peft, exact, base = (held(tmp_path / n) for n in ("out", "peft", "exact", "base"))
    assert {k: t.dtype for k, t in ours.items()} == {k: t.dtype for k, t in peft.items()}
    changed = [k for k, t in ours.items() if not torch.equal(t, base[k])]
    assert len(changed) == 14
    assert all(torch.equal(t, peft[k]) for k, t in ours.items() if k not in changed)
    for k in changed:
        half = (exact[k].abs() + torch.finfo(kind).smallest_normal) * torch.finfo(kind).eps / 2
        for found in (ours[k], peft[k]):
            assert ((found.double() - exact[k]).abs() <= 1.001 * half).all()
        assert (ours[k] == peft[k]).float().mean() > 0.998  # ties between the two, as float32 sums them


def test_every_float_in_one_dtype(tmp_path: Path) -> None:
    adapter = adapted(mixed(tiny("llama")), tmp_path, fw.LoRA(rank=2))
    for word, kind in {"fp32": FP32, "fp16": FP16, "bfloat16": BF16}.items():
        assert merge(adapter, tmp_path / word, "--dtype", word) == 0
        assert set(dtypes(tmp_path / word).values()) == {kind}
    fw.merge(fw.load_model(adapter)).save_pretrained(tmp_path / "float")
    float32 = held(tmp_path / "float")
    assert all(torch.equal(t, float32[k]) for k, t in held(tmp_path / "fp32").items())


def test_a_head_that_the_base_lacks(tmp_path: Path) -> None:
    task = fw.Classification(labels=("a", "b"))
    adapter = adapted(tiny("bert").base_model.to(BF16), tmp_path, fw.LoRA(rank=2), task)
    assert merge(adapter, tmp_path / "out") == 0
    assert dtypes(tmp_path / "out")["classifier.weight"] == BF16
    assert fw.load_base(tmp_path / "out", task).new_tensors == []


@pytest.mark.parametrize("folder", [True, False])
def test_over_codes(folder: bool, tmp_path: Path) -> None:
    """Decoded weights are in the dtype that most of the base's own numbers have, or had before quantizing; with
    --requantize all but the codes is as it was."""
    adapted(mixed(tiny("llama")), tmp_path, fw.LoRA(rank=2))
    base = tmp_path / "base"
    if folder:
        base = tmp_path / "codes"
        assert (
            main(["quantize", str(tmp_path / "base"), "--scheme", "nf4", "--dtype", "bf16", "--output", str(base)]) == 0
        )
        four_words().save_pretrained(base)
    model = fw.attach(fw.load_base(base, quantize=None if folder else fw.NF4()), fw.LoRA(rank=2))
    disturb(model)
    fw.save(model, tmp_path / "qlora")
    assert merge(tmp_path / "qlora", tmp_path / "out") == 0
    assert merge(tmp_path / "qlora", tmp_path / "again", "--requantize") == 0
    there = dtypes(base if folder else tmp_path / "base")
    decoded = dtypes(tmp_path / "out")
    assert decoded["model.layers.0.mlp.up_proj.weight"] == BF16
    assert all(decoded[k] == kind for k, kind in there.items() if k in decoded)
    again = dtypes(tmp_path / "again")
    assert all(kind == there[k] for k, kind in again.items() if k in there)
    assert again["model.embed_tokens.weight"] == BF16
    assert torch.uint8 in again.values()
    fw.dequantize(fw.merge(model)).save_pretrained(tmp_path / "float")
    exact = held(tmp_path / "float")
    assert all(torch.equal(t, exact[k].to(t.dtype)) for k, t in held(tmp_path / "out").items())


def test_what_rounding_cost_is_told(tmp_path: Path, capsys: Any) -> None:
    """A change far below a unit in the last place rounds away, and the way out is named; a large one stays."""
    small = adapted(tiny("llama").to(BF16), tmp_path / "small", fw.LoRA(rank=2), scale=2e-5)
    large = adapted(tiny("llama").to(BF16), tmp_path / "large", fw.LoRA(rank=2))
    assert merge(small, tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "--dtype fp32 keeps all of it" in said
    assert merge(small, tmp_path / "b", "--json") == 0
    lost = json.loads(capsys.readouterr().out)
    assert lost["dtype"] == "bfloat16"
    assert lost["rounded"]["kept"] < 0.5
    assert len(lost["rounded"]["tensors"]) == 4
    assert merge(small, tmp_path / "c", "--dtype", "fp32", "--json") == 0
    assert "rounded" not in json.loads(capsys.readouterr().out)
    assert merge(large, tmp_path / "d", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounded"]["kept"] > 0.95
    assert merge(large, tmp_path / "e") == 0
    assert "--dtype" not in capsys.readouterr().out


def test_the_cost_by_hand() -> None:
    """From 1, where bfloat16 has steps of 2^-7: 2^-9 is lost, 2^-7 kept, 3 · 2^-8 halfway goes to the even 1 + 2^-6."""
    W = torch.ones(3)
    delta = torch.tensor([2**-9, 2**-7, 3 * 2**-8])
    found = cost("w", W, W + delta, BF16)
    kept = (2**-14 + 3 * 2**-14) / (2**-18 + 2**-14 + 9 * 2**-16)
    assert found.kept == pytest.approx(kept)
    assert found.noise == pytest.approx(((2**-18 + 2**-16) / (2**-18 + 2**-14 + 9 * 2**-16)) ** 0.5)
    assert found.change == pytest.approx(float(delta.norm()) / 3**0.5)
    assert cost("w", W, W + delta, FP16).kept == 1


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    W, delta = torch.randn(7, 5), 0.01 * torch.randn(7, 5)
    whole = cost("w", W, W + delta, BF16)
    monkeypatch.setattr("featherweight.interop.rounding.PIECE", 8)
    parts = cost("w", W, W + delta, BF16)
    assert (parts.kept, parts.off, parts.change) == pytest.approx((whole.kept, whole.off, whole.change))
    assert (parts.where, parts.scheme) == ("w", "bfloat16")


def test_too_large_for_fp16(tmp_path: Path, capsys: Any) -> None:
    """In a tensor that merging rewrites, and in one that it does not: told by name, and nothing is written."""
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        model = tiny("llama")
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] = 70_000
        place = tmp_path / name.split(".")[1]
        adapter = adapted(model, place, fw.LoRA(rank=2))
        assert merge(adapter, place / "out", "--dtype", "fp16") == 2
        said = capsys.readouterr().err
        assert f"{name}: too large for float16; expected at most 65504; got 1 values beyond it" in said
        assert sorted(p.name for p in place.iterdir()) == ["adapter", "base"]


def test_an_unknown_dtype_is_refused_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    assert merge(tmp_path / "not there", tmp_path / "out", "--dtype", "int8") == 2
    assert main(["quantize", str(tmp_path / "no"), "--scheme", "nf4", "--dtype", "int8", "--output", "x"]) == 2
    assert capsys.readouterr().err.count("--dtype: unknown dtype; expected auto, fp32, bf16, fp16; got 'int8'") == 2


def test_a_dtype_that_holds_the_other_rounds_nothing() -> None:
    wide = torch.tensor([float("inf"), 1.0], dtype=BF16)
    assert torch.equal(rounded("w", wide, FP32), wide.float())
    assert Dtypes({}, BF16).usual == BF16

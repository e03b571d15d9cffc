"""`fw merge` over a quantized base: into floating point, or encoded again where that is asked for, with a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.codes import quantized_modules
from support.models import disturb

import featherweight as fw
from featherweight.cli.main import main
from featherweight.quant import NF4


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An adapter's folder, its base a folder of codes beside it; and what both compute."""
    place = tmp_path_factory.mktemp("codes")
    model: Any = fw.load_base(data_dir / "stories260k" / "hf", fw.CausalLM())
    fw.quantize(model, NF4())
    model.save_pretrained(place / "base")
    model.tokenizer.save_pretrained(place / "base")
    model = fw.load_base(place / "base", fw.CausalLM())
    fw.attach(model, fw.LoRA(rank=2))
    disturb(model, scale=0.02)
    fw.save(model, place / "adapter")
    return place, scores(model)


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits


def merged(place: Path, output: Path, *flags: str) -> int:
    return main(["merge", "--adapter", str(place / "adapter"), "--output", str(output), *flags])


def test_into_floating_point(trained: Any, tmp_path: Path, capsys: Any) -> None:
    place, before = trained
    assert merged(place, tmp_path / "plain", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    plain = fw.load_base(tmp_path / "plain", fw.CausalLM())
    assert "requantized" not in said
    assert said["parameters"] == fw.trainable(plain).total
    assert not quantized_modules(plain), "what no adapter changes is decoded too"
    torch.testing.assert_close(scores(plain), before, rtol=1e-3, atol=1e-3)


def test_encoded_again_with_a_report(trained: Any, tmp_path: Path, capsys: Any) -> None:
    place, before = trained
    assert merged(place, tmp_path / "codes", "--requantize", "--json") == 0
    said = json.loads(capsys.readouterr().out)["requantized"]
    plain = fw.load_base(tmp_path / "codes", fw.CausalLM())
    assert len(said["tensors"]) == 10
    assert 0 < said["kept"] < 1.2
    assert {t["scheme"] for t in said["tensors"].values()} == {"NF4()"}
    assert len(quantized_modules(plain)) == 35
    assert not torch.allclose(scores(plain), before, atol=1e-3)


def test_the_report_on_the_screen(trained: Any, tmp_path: Path, capsys: Any) -> None:
    assert merged(trained[0], tmp_path / "codes", "--requantize") == 0
    said = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj.weight  NF4()" in said
    assert "all 10 tensors" in said

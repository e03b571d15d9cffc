"""The report: every number by hand, or by its definition on the decoded weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import inputs, tiny
from torch.nn import functional as F

import featherweight as fw
from featherweight.quant import NF4, Absmax, Half
from featherweight.quant.picture import grid, heatmap
from featherweight.quant.report import Layer, Report, Usage, block_names, decibels, size, usage


def test_usage_by_hand() -> None:
    used = Usage((2, 1, 1, 0))
    assert used.entropy == pytest.approx(1.5)
    assert used.collisions == pytest.approx(0.25 + 2 / 16)
    assert used.unused == 1
    even = Usage((5,) * 16)
    assert (even.entropy, even.collisions, even.unused) == pytest.approx((4.0, 1 / 16, 0))


def test_codes_are_counted_without_the_padding() -> None:
    packed = {"codes": torch.tensor([0x07, 0x7F, 0x37], dtype=torch.uint8)}
    found = usage(packed, (5,))
    assert found is not None
    counts = [0] * 16
    for code in (0, 7, 7, 15, 3):  # the last 7 is padding
        counts[code] += 1
    assert found.counts == tuple(counts)
    whole = usage(packed, (2, 3))
    assert whole is not None
    assert sum(whole.counts) == 6
    signed = usage({"codes": torch.tensor([[-1, 5], [5, 0]], dtype=torch.int8)}, (2, 2))
    assert signed is not None
    assert (signed.counts[255], signed.counts[5], signed.counts[0]) == (1, 2, 1)
    assert usage({"codes": torch.zeros(4)}, (4,)) is None


def test_decibels_and_sizes() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == math.inf
    assert [size(n) for n in (999, 12_345, 4_500_000, 13_500_000_000)] == ["999 B", "12.3 KB", "4.5 MB", "13.5 GB"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Report]:
    model = tiny("llama")
    batches = [inputs("llama", 2, 7), inputs("llama", 3, 5)]
    return model, fw.quantize(model, NF4(block=32), batches=batches)


def test_every_number_is_its_definition(pair: tuple[Any, Report]) -> None:
    model, report = pair
    plain = tiny("llama")
    for layer in report.layers:
        W, back = plain.get_submodule(layer.path).weight.detach(), model.get_submodule(layer.path).weight
        assert layer.error == pytest.approx(float((W - back).norm() / W.norm()), rel=1e-4)
        assert layer.sqnr == pytest.approx(-20 * math.log10(layer.error), rel=1e-5)
        assert layer.before == 4 * W.numel()
        assert layer.after == NF4(block=32).size(tuple(W.shape))
        assert layer.usage is not None
        assert sum(layer.usage.counts) == W.numel()
        assert 0 < layer.usage.entropy < 4
        assert 1 / 16 < layer.usage.collisions < 1
    assert report.bits == pytest.approx(5.0)
    assert report.before == sum(p.numel() * 4 for p in plain.parameters())
    stored = sum(t.numel() * t.element_size() for m in model.modules() for t in getattr(m, "packed", {}).values())
    assert report.after == stored + sum(p.numel() * p.element_size() for p in model.parameters())


def test_output_errors_are_those_of_the_inputs_of_the_float_model(pair: tuple[Any, Report]) -> None:
    model, report = pair
    plain = tiny("llama")
    seen: list[torch.Tensor] = []
    path = "model.layers.1.mlp.down_proj"
    hook = plain.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in (inputs("llama", 2, 7), inputs("llama", 3, 5)):
            plain(**batch)
    hook.remove()
    x = torch.cat([s.flatten(0, -2) for s in seen])
    y = F.linear(x, plain.get_submodule(path).weight.detach())
    error = float((F.linear(x, model.get_submodule(path).weight) - y).norm() / y.norm())
    assert next(layer.output for layer in report.layers if layer.path == path) == pytest.approx(error, rel=1e-4)
    assert all(layer.output is not None for layer in report.layers)


def test_bits_show_in_the_numbers() -> None:
    four, eight = (fw.quantize(tiny("bert"), s) for s in (NF4(), Absmax()))
    assert four.sqnr < eight.sqnr - 15
    half = fw.quantize(tiny("bert"), Half())
    assert half.layers[0].usage is None
    assert half.to_dict()["layers"][0]["entropy"] is None


def test_plain_values_and_words(pair: tuple[Any, Report]) -> None:
    _, report = pair
    form = json.loads(json.dumps(report.to_dict()))
    assert form["scheme"] == {"type": "nf4", "block": 32}
    assert len(form["layers"]) == 14
    assert {s["reason"] for s in form["skipped"]} == {"embedding", "norm", "head"}
    text = repr(report)
    assert "14 layers in 5.000 bits a weight" in text
    assert report.worst.path in text
    assert "output error" in text


def test_a_layer_of_zeros() -> None:
    layer = Layer("x", "up", 0, (2, 2), 16, 4, 0.0, 0.0)
    assert (layer.error, layer.sqnr) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("arch", "rows", "columns"),
    [
        ("llama", [0, 1], ["query", "key", "value", "output", "gate", "up", "down"]),
        ("gpt2", [0, 1], ["query+key+value", "output", "up", "down"]),
        ("t5", [0, 1, 2, 3], ["query", "key", "value", "output", "gate", "up", "down",
                              "query 2", "key 2", "value 2", "output 2"]),
    ],
)  # fmt: skip
def test_the_picture_has_a_cell_for_every_layer(arch: str, rows: list[int], columns: list[str]) -> None:
    report = fw.quantize(tiny(arch), NF4(block=32))
    cells, found, names = grid(report.layers)
    assert (found, names) == (rows, columns)
    assert sorted(layer.path for layer in cells.values()) == sorted(layer.path for layer in report.layers)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ({0: "model.layers.0.mlp.up", 1: "model.layers.1.mlp.up"}, ["0", "1"]),
        ({0: "encoder.block.0.layer.1.wi", 1: "decoder.block.0.layer.2.wi"}, ["encoder 0", "decoder 0"]),
        ({3: "model.encoder.layers.3.fc1", 4: "model.decoder.layers.0.fc1"}, ["encoder 3", "decoder 0"]),
        ({0: "fc"}, ["0"]),
    ],
)
def test_blocks_are_called_by_their_stack_where_there_are_several(paths: dict[int, str], names: list[str]) -> None:
    layers = [Layer(path, "up", block, (2, 2), 16, 4, 1.0, 0.1) for block, path in paths.items()]
    assert list(block_names(layers).values()) == names


def test_layers_outside_of_the_blocks_are_drawn_too(tmp_path: Path) -> None:
    report = fw.quantize(tiny("llama"), NF4(), targets=["query", "head"])
    cells, rows, _ = grid(report.layers)
    assert rows == [0, 1, "other"]
    assert cells["other", "head"].path == "lm_head"
    same = [heatmap(report, tmp_path / f"{i}.svg").read_bytes() for i in range(2)]
    assert same[0] == same[1]


def test_a_picture_of_exact_layers(tmp_path: Path) -> None:
    report = fw.quantize(tiny("llama", torch.bfloat16), Half())  # bf16 is kept as it is: SQNR is infinite
    assert report.sqnr == math.inf
    assert heatmap(report, tmp_path / "exact.png").stat().st_size > 5000

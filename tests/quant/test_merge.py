"""Merging over codes: into floats nothing is lost; encoded again, what is left of the adapter is measured."""

import weakref
from typing import Any

import pytest
import torch
from support.codes import coded, quantized_modules, with_codes
from support.laws import far
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core import merge as merging
from featherweight.core.evidence import MergeReport, Survival, survival
from featherweight.core.host import Host
from featherweight.quant import NF4, Absmax, QuantLinear
from featherweight.quant.quantized import become_quantized

ARCHS = ("llama", "gpt2", "bert")


def again(W: Tensor, scheme: Any = NF4()) -> Tensor:  # noqa: B008
    return scheme.decode(scheme.encode(W), tuple(W.shape), W.dtype)


def adapted(change: float, size: int = 512, rank: int = 16) -> tuple[nn.Module, nn.Linear]:
    """A model of one NF4 layer under a LoRA of which |Δ| / |Ŵ| is `change`, and the layer as it was."""
    torch.manual_seed(0)
    plain = nn.Linear(size, size, bias=False)
    nn.init.normal_(plain.weight, std=0.02)
    model = nn.Sequential(nn.Linear(size, size, bias=False))
    model[0].weight.data.copy_(plain.weight)
    coded(model[0])
    fw.attach(model, fw.LoRA(rank=rank, targets=".*"))
    adapter: Any = model[0].adapters["default"]
    with torch.no_grad():
        nn.init.normal_(adapter.lora_B.weight)
        adapter.lora_B.weight *= change * model[0].weight.norm() / adapter.delta().norm()
    return model, plain


@pytest.mark.parametrize(("change", "kept"), [(0.01, 0.016), (0.05, 0.27), (0.10, 0.83)])
def test_what_nf4_keeps_of_a_small_adapter(change: float, kept: float) -> None:
    """Law 5, the table measured of the usual way."""
    report = fw.merge_report(adapted(change)[0])
    (row,) = report.tensors
    assert row.where == "0.weight"
    assert row.scheme == "NF4()"
    assert row.change == pytest.approx(change, rel=1e-3)
    assert row.kept == pytest.approx(kept, abs=0.03)
    assert report.total.kept == pytest.approx(row.kept)


@pytest.mark.parametrize(("change", "off"), [(0.002, 0.002), (0.20, 0.092)])
def test_distance_to_the_merge_into_floats(change: float, off: float) -> None:
    """The whole of a change that moves no code; a fresh rounding where all of them move."""
    model, _ = adapted(change)
    report = fw.merge_report(model)
    with fw.merged(model):
        whole = model[0].weight.detach().clone()
    with fw.merged(model, requantize=True):
        lossy = model[0].weight.detach().clone()
    assert report.total.off == pytest.approx(float((lossy - whole).norm() / whole.norm()), rel=1e-4)
    assert report.total.off == pytest.approx(off, abs=0.004)


def test_of_the_original_both_ways_are_as_far_as_the_table_says() -> None:
    """Distance to W + Δ: merged in floats and then quantized .0920 at any size; requantized .0920 rising to .129."""
    for change, lossy in ((0.002, 0.0920), (0.20, 0.129)):
        model, plain = adapted(change)
        adapter: Any = model[0].adapters["default"]
        wanted = plain.weight + adapter.delta()
        with fw.merged(model, requantize=True):
            got = model[0].weight.detach().clone()
        for found, distance in ((again(wanted.detach()), 0.0920), (got, lossy)):
            assert float(((found - wanted).norm() / wanted.norm()).detach()) == pytest.approx(distance, abs=0.003)


def test_worked_by_hand() -> None:
    """Ŵ = (3, 4), M = (3, 5), Q(M) = (3, 4.5): half of Δ = (0, 1) is kept."""
    row = survival("w", "toy", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.5]))
    assert (row.weight, row.delta, row.along, row.miss, row.whole) == (25.0, 1.0, 0.5, 0.25, 34.0)
    assert (row.change, row.kept) == (0.2, 0.5)
    assert row.off == pytest.approx(0.5 / 34**0.5)
    both = MergeReport((row, Survival("v", "toy", 75.0, 3.0, 3.0, 0.0, 66.0)))
    assert (both.total.change, both.total.kept) == (0.2, 0.875)
    assert both.to_dict()["tensors"]["w"]["kept"] == 0.5
    assert [line.split()[-1] for line in str(both).splitlines()] == ["toy", "toy", "tensors"]
    still = survival("w", "toy", torch.ones(2), torch.ones(2), torch.ones(2))
    assert (still.change, still.kept, still.off) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("arch", ARCHS)
def test_floats_are_the_default_and_lose_nothing(arch: str) -> None:
    model = fw.attach(with_codes(tiny(arch)), fw.LoRA(rank=3, targets="linear"), head=False)
    disturb(model)
    before = logits(model, inputs(arch))
    plain = fw.merge(model)
    assert far(logits(plain, inputs(arch)), before) < 1e-5
    assert not quantized_modules(plain)
    assert not hasattr(plain, "merge_report")
    assert list(plain.state_dict()) == list(tiny(arch).state_dict())


@pytest.mark.parametrize("scheme", [NF4(), Absmax(bits=8, per="row"), NF4(double=True)], ids=repr)
@pytest.mark.parametrize("arch", ARCHS)
def test_encoded_again_it_stays_quantized_and_reports(arch: str, scheme: Any) -> None:
    model = fw.attach(with_codes(tiny(arch), scheme), fw.LoRA(rank=3, targets=("query", "up")), head=False)
    disturb(model)
    expected = fw.merge_report(model)
    hosts = [p for p, m in model.named_modules() if isinstance(m, Host)]
    with fw.merged(model, requantize=True):
        lent = logits(model, inputs(arch))
    with fw.merged(model):
        weights = {p: m.weight.detach().clone() for p, m in model.named_modules() if p in hosts}
    merged: Any = fw.merge(model, requantize=True)
    assert merged.merge_report == expected
    assert [row.where for row in expected.tensors] == [f"{p}.weight" for p in hosts]
    assert far(logits(merged, inputs(arch)), lent) < 1e-5
    there = quantized_modules(merged)
    assert len(there) == len(quantized_modules(with_codes(tiny(arch), scheme)))
    for path, W in weights.items():
        matrix = (W.T if there[path].flip else W).contiguous()
        assert all(torch.equal(t, there[path].packed[k]) for k, t in scheme.encode(matrix).items())
    assert not [m for m in merged.modules() if isinstance(m, Host)]


def test_both_ways_can_be_measured_on_held_out_rows() -> None:
    """In a `with`, nothing is lost: what each would be worth, and the adapter as it is after."""
    model = fw.attach(with_codes(tiny("llama")), fw.LoRA(rank=3, targets="linear"))
    disturb(model, scale=0.02)
    batch = inputs("llama") | {"labels": inputs("llama")["input_ids"]}

    def loss() -> float:
        with torch.no_grad():
            return float(model(**batch).loss)

    attached = loss()
    with fw.merged(model):
        floats = loss()
    with fw.merged(model, requantize=True):
        codes = loss()
    assert floats == pytest.approx(attached, rel=1e-5)
    assert abs(codes - attached) > 1e-4
    assert loss() == attached


def test_a_method_that_rewrites_the_bias_too() -> None:
    """The bias is no code: it is merged into exactly, whichever way the weight goes."""
    model = fw.attach(with_codes(tiny("bert")), fw.IA3(), head=False)
    disturb(model)
    with fw.merged(model):
        key: Any = model.bert.encoder.layer[0].attention.self.key
        bias = key.bias.detach().clone()
    fw.merge(model, requantize=True)
    assert type(key) is QuantLinear
    assert torch.equal(key.bias, bias)


def test_nothing_there_to_be_encoded_again() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    for ask in (lambda: fw.merge(model, requantize=True), lambda: fw.merge_report(model)):
        with pytest.raises(fw.InputError, match="nothing that merging rewrites is kept as codes; merge it plainly"):
            ask()
    assert [m for m in model.modules() if isinstance(m, Host)]
    fw.detach(model)
    fw.attach(with_codes(model), fw.Houlsby())
    with pytest.raises(fw.NotMergeable):
        fw.merge(model, requantize=True)


def test_tied_codes_are_kept_apart_once_one_of_them_is_merged_into() -> None:
    model = tiny("gpt2")
    codes = NF4().encode(model.lm_head.weight)
    for module in (model.lm_head, model.transformer.wte):
        become_quantized(module, NF4(), codes)
    fw.attach(model, fw.LoRA(rank=2, targets="head"))
    disturb(model)
    fw.merge(model, requantize=True)
    assert model.lm_head.packed["codes"] is not model.transformer.wte.packed["codes"]
    assert torch.equal(model.transformer.wte.packed["codes"], codes["codes"])
    assert model.config.tie_word_embeddings is False


def test_one_host_at_a_time_and_none_where_one_is_damaged() -> None:
    """What is merged is let go before the next; a NaN in the last host leaves the first as it was."""
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2, targets="linear"))
    disturb(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    last = [m for _, m in model.named_modules() if isinstance(m, Host)][-1]
    with torch.no_grad():
        kept = last.adapters["default"].lora_B.weight.clone()
        last.adapters["default"].lora_B.weight[0, 0] = torch.nan
    with pytest.raises(fw.FeatherweightError, match="merging would write NaN or inf"):
        fw.merge(model)
    with torch.no_grad():
        last.adapters["default"].lora_B.weight.copy_(kept)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    alive: list[Any] = []
    plain, most = merging.folded, []

    def watched(path: str, host: Any) -> Any:
        found = plain(path, host)
        most.append(sum(ref() is not None for ref in alive))
        alive.extend(weakref.ref(W) for _, _, W in found)
        return found

    on = logits(model, inputs("llama"))
    merging.folded = watched
    try:
        fw.merge(model)
    finally:
        merging.folded = plain
    assert len(most) == 28  # each of 14 hosts, to check it and to write it
    assert max(most) <= 1
    assert far(logits(model, inputs("llama")), on) < 1e-5

"""LoftQ: with B A the quantized weight is nearer to the weight than without, and nearer still with more rounds."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.codes import quantized_modules, with_codes
from support.models import inputs, logits, output, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.part import Part
from featherweight.core.state import adapters
from featherweight.methods.lowrank import LowRank
from featherweight.methods.starts.loftq import loftq
from featherweight.quant import NF4, Absmax

ARCHS = ("llama", "gpt2", "bert")


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Any:
    return fw.load_base(data_dir / "stories260k" / "hf", fw.CausalLM())


def low_rank(W: Tensor, rank: int, rounds: int) -> LowRank:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
    adapter = LowRank(layer, rank, scale=2.0)
    nn.init.zeros_(adapter.B)
    nn.init.normal_(adapter.A)
    adapter.rounds = rounds
    return adapter


def rounded(W: Tensor) -> Tensor:
    return NF4().decode(NF4().encode(W), tuple(W.shape), W.dtype)


def left(W: Tensor, rank: int, rounds: int) -> float:
    """‖W − (Q + s B A)‖ after so many rounds."""
    adapter = low_rank(W, rank, rounds)
    kept = loftq(adapter, W, rounded)
    return float((W - rounded(kept) - adapter.delta()).detach().norm())


@pytest.fixture(scope="session")
def squares(stories: Any) -> list[Tensor]:
    """(128, 128) of a trained model: q, k over v, o of each layer, as far as heads share no keys; up over gate."""
    found = []
    for layer in stories.model.layers:
        a, m = layer.self_attn, layer.mlp
        kv = torch.cat([a.k_proj.weight, a.v_proj.weight])
        tall = torch.cat([a.q_proj.weight, a.o_proj.weight, kv, m.gate_proj.weight, m.up_proj.weight])
        found.append(torch.cat([tall[:128], tall[128:256]], 1).detach().contiguous())
    return found


@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_every_round_comes_nearer_on_real_weights(squares: list[Tensor], rank: int) -> None:
    """Strictly for the first rounds, and never further away."""
    for W in squares:
        lost = [float((W - rounded(W)).norm()), *(left(W, rank, t) for t in range(1, 6))]
        assert lost[2] < lost[1] < lost[0]
        assert all(b <= a for a, b in pairwise(lost)), lost


def test_over_the_layers_of_a_model_as_they_are(stories: Any) -> None:
    weights = [Part(m).weight.detach() for _, m in stories.named_modules() if isinstance(m, nn.Linear)]
    lost = [sum(float((W - rounded(W)).norm()) ** 2 for W in weights)]
    lost += [sum(left(W, 8, t) ** 2 for W in weights) for t in range(1, 6)]
    assert all(b < a for a, b in pairwise(lost)), lost


def test_one_round_is_the_svd_of_what_is_lost() -> None:
    """Against numpy: the first r singular triples of W − Q, and codes that are W's own."""
    import numpy

    torch.manual_seed(0)
    W, rank = torch.randn(48, 80), 6
    adapter = low_rank(W, rank, 1)
    assert loftq(adapter, W, rounded) is W
    U, S, V = numpy.linalg.svd((W - rounded(W)).numpy())
    torch.testing.assert_close(adapter.delta(), torch.tensor((U[:, :rank] * S[:rank]) @ V[:rank]), rtol=1e-4, atol=1e-5)


def errors(model: nn.Module, base: nn.Module) -> dict[str, float]:
    """path -> ‖W − merged weight‖ / ‖W − decoded weight‖."""
    plain, found = dict(base.named_modules()), {}
    codes = {p: m.weight.clone() for p, m in quantized_modules(model).items()}
    with fw.merged(model):
        for path, module in model.named_modules():
            if path in codes:
                W: Any = plain[path].weight
                found[path] = float(((W - module.weight).norm() / (W - codes[path]).norm()).detach())
    return found


@pytest.mark.parametrize("init", ["loftq", "loftq-3"])
@pytest.mark.parametrize("arch", ARCHS)
def test_it_starts_as_its_host_is_quantized(arch: str, init: str) -> None:
    model = fw.attach(tiny(arch), fw.LoRA(rank=6, targets="linear", init=init), head=False)
    before = logits(tiny(arch), inputs(arch))
    assert torch.equal(logits(model, inputs(arch)), before), "until then it is the identity"
    fw.quantize(model, NF4())
    assert all(e < 1 for e in errors(model, tiny(arch)).values())
    plain = with_codes(tiny(arch))
    off = (logits(model, inputs(arch)) - before).norm(), (logits(plain, inputs(arch)) - before).norm()
    assert off[0] < off[1]
    same = [torch.equal(m.packed["codes"], quantized_modules(plain)[p].packed["codes"])
            for p, m in quantized_modules(model).items()]  # fmt: skip
    assert all(same) if init == "loftq" else not any(same)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("scheme", [NF4(), Absmax(bits=4, per="row")], ids=repr)
def test_prepared_from_the_originals_it_is_the_same(arch: str, scheme: Any) -> None:
    """On a model that was quantized before, with the checkpoint at hand; slices and Conv1D too."""
    for init, targets in (("loftq", "linear"), ("loftq-2", ("query", "value"))):
        torch.manual_seed(0)
        one = fw.attach(tiny(arch), fw.LoRA(rank=5, targets=targets, init=init), head=False)
        fw.quantize(one, scheme)
        torch.manual_seed(0)
        two = with_codes(tiny(arch), scheme)
        fw.attach(two, fw.LoRA(rank=5, targets=targets, init=init), head=False)
        two.originals = tiny(arch).state_dict()
        fw.prepare(two, [])
        torch.testing.assert_close(logits(one, inputs(arch)), logits(two, inputs(arch)), rtol=1e-4, atol=1e-5)
        kept = {k: p.clone() for k, p in two.named_parameters()}
        fw.prepare(two, [])
        assert all(torch.equal(p, kept[k]) for k, p in two.named_parameters()), "what has started stays"


def test_prepared_from_the_checkpoint_it_was_streamed_from(data_dir: Path, stories: Any) -> None:
    """`load_base(path, quantize=...)` never holds the float model, and LoftQ starts from its files all the same."""
    model: Any = fw.load_base(data_dir / "stories260k" / "hf", fw.CausalLM(), quantize=NF4())
    fw.attach(model, fw.LoRA(rank=8, targets="linear", init="loftq"))
    fw.prepare(model, [])
    found = errors(model, stories)
    assert len(found) == 35
    assert all(e < 0.95 for e in found.values()), "8 of 64 directions take a good part of it"


def test_a_checkpoint_of_the_trunk_has_no_prefix() -> None:
    model = with_codes(tiny("bert"))
    fw.attach(model, fw.LoRA(rank=2, init="loftq"), head=False)
    model.originals = tiny("bert").bert.state_dict()
    fw.prepare(model, [])
    assert all(a.B.any() for a in adapters(model, "default").values())


def test_under_a_decomposition() -> None:
    """DoRA's magnitudes are those of the weight as it was; the direction starts nearer to it than the codes alone."""
    model = fw.attach(tiny("llama"), fw.DoRA(rank=6, targets="linear", init="loftq"))
    fw.quantize(model, NF4())
    assert all(e < 1 for e in errors(model, tiny("llama")).values())


def test_it_says_what_it_lacks() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, init="loftq"))
    with pytest.raises(fw.InputError, match=r"q_proj.*v_proj.*and this is not quantized; fw\.quantize\(model"):
        fw.prepare(model, [])
    fw.detach(model)
    with_codes(model)
    fw.attach(model, fw.LoRA(rank=4, init="loftq"))
    with pytest.raises(fw.InputError, match=r"what quantizing lost is not known any more; attach before you quantize"):
        fw.prepare(model, [])
    model.originals = {k: v[:1] for k, v in tiny("llama").state_dict().items() if v.dim()}
    with pytest.raises(fw.InputError, match=r"q_proj\.weight.*another shape; expected \(32, 32\); got \(1, 32\)"):
        fw.prepare(model, [])
    with pytest.raises(fw.InputError, match="unknown init"):
        fw.attach(tiny("llama"), fw.LoRA(init="loftq-9"))


def test_it_trains_from_there() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, init="loftq"))
    fw.quantize(model, NF4())
    output(model, inputs("llama")).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for k, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("init", ["loftq", "loftq-3"])
def test_saved_and_loaded_onto_its_own_base_alone(init: str, tmp_path: Path, caplog: Any) -> None:
    """One round fits every base quantized alike; more fit the base they made; the float base is refused."""
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, init=init))
    fw.quantize(model, NF4())
    before = logits(model, inputs("llama"))
    fw.save(model, tmp_path)
    own = copy.deepcopy(model)
    fw.detach(own)
    assert torch.equal(logits(fw.load(own, tmp_path), inputs("llama")), before)
    other = with_codes(tiny("llama"))
    if init == "loftq":
        assert torch.equal(logits(fw.load(other, tmp_path), inputs("llama")), before)
    else:
        with pytest.raises(fw.InputError, match=r"belongs to another base.*in its values.*q_proj\.weight"):
            fw.load(other, tmp_path)
    wrong = "the adapter makes up for what one number format loses; expected NF4(); got floating point"
    with pytest.raises(fw.InputError) as error:
        fw.load(tiny("llama"), tmp_path)
    assert wrong in str(error.value)
    fw.load(tiny("llama"), tmp_path, strict_base=False)
    assert wrong in caplog.text


def test_its_rank_and_scale_are_those_of_any_lora() -> None:
    model = fw.attach(tiny("gpt2"), fw.LoRA(rank=4, alpha=2, init="loftq", targets=("embedding", "attention")))
    fw.quantize(model, NF4(), targets="attention")
    made = adapters(model, "default")
    assert {type(a).__name__ for a in made.values()} == {"Parts", "LowRankEmbedding"}
    assert fw.trainable(model).trainable == sum(a.added() for a in made.values())

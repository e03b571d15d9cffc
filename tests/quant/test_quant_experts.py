"""Experts' 3-d weights as codes: each matrix by itself, decoded where it is used, in transformers' layouts."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.mixtures import MODELS, mixture
from support.models import disturb, inputs, logits
from torch import Tensor, nn

import featherweight as fw
from featherweight.checkpoint.fingerprint import fingerprint
from featherweight.core.encoded import encoded
from featherweight.core.errors import InputError
from featherweight.quant.each import Each
from featherweight.quant.experts import Experts, Stack
from featherweight.quant.lazy import Lazy
from featherweight.quant.recipe import Recipe, recipes

BATCH = inputs("llama")
NF4 = fw.NF4(block=32)
PATH = "model.layers.0.mlp.experts"


def coded(kind: str = "mixtral", scheme: Any = NF4, eager: bool = False, **options: Any) -> Any:
    model = mixture(kind, eager)
    fw.quantize(model, scheme, **options)
    return model


def experts(model: Any) -> Any:
    return model.get_submodule(PATH)


def plain(model: Any) -> Any:
    return fw.dequantize(copy.deepcopy(model))


@pytest.mark.parametrize(
    "scheme", [fw.NF4(), fw.NF4(double=True), fw.FP4(block=32), fw.Absmax(), fw.LLMInt8(), fw.Half()]
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 48, 32), (4, 1, 3)])
def test_a_stack_is_its_matrices(scheme: Any, shape: tuple[int, ...]) -> None:
    """No scale is shared: what each matrix is alone."""
    W = torch.randn(shape)
    packed = Each(scheme).encode(W)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in packed.items()} == Each(scheme).layout(shape)
    back = Each(scheme).decode(packed, shape, torch.float32)
    for e, matrix in enumerate(W):
        alone = scheme.encode(matrix)
        assert all(torch.equal(packed[n][e], t) for n, t in alone.items())
        assert torch.equal(back[e], scheme.decode(alone, shape[1:], torch.float32))


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", MODELS)
def test_computes_what_its_codes_decode_to(kind: str, way: str) -> None:
    model = mixture(kind)
    size = sum(p.numel() for p in model.parameters())
    stacks = {f"{p}.{n}": tuple(t.shape) for p, m in model.named_modules() for n, t in m._parameters.items() if t is not None and t.dim() == 3}  # fmt: skip  # noqa: E501
    report = fw.quantize(model, NF4)
    model.config._experts_implementation = way
    assert isinstance(experts(model), Experts)
    assert isinstance(experts(model).gate_up_proj, Lazy)
    assert set(stacks) <= {layer.path for layer in report.layers}
    for layer in report.layers:
        if layer.path in stacks:
            assert layer.usage is not None
            assert sorted(layer.shape) == sorted(stacks[layer.path])
            assert sum(layer.usage.counts) == torch.Size(layer.shape).numel()
            assert 15 < layer.sqnr < 25
    floats = plain(model)
    torch.testing.assert_close(logits(model, BATCH), logits(floats, BATCH), atol=1e-5, rtol=1e-4)
    assert type(experts(floats)).__name__ == type(experts(model)).__name__
    assert list(floats.state_dict()) == list(mixture(kind).state_dict())
    assert fw.trainable(model).total == fw.trainable(floats).total == size
    assert fw.trainable(model).codes > 0.5 * size


def test_gradients_are_those_over_the_decoded_weights_and_only_codes_are_kept() -> None:
    """What autograd saves of an expert's matrix costs nothing; the gradient goes on to what lies before."""
    model = coded()
    floats, grads, kept = plain(model), [], []
    sizes = {48 * 32, 2 * 48 * 32, 4 * 48 * 32, 4 * 2 * 48 * 32}

    def note(t: Tensor) -> Tensor:
        if not isinstance(t, Lazy) and t.dtype.is_floating_point:
            kept.append(t.numel())
        return t

    for one in (model, floats):
        kept.clear()
        table = one.get_input_embeddings().weight.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            one(**BATCH).logits.square().mean().backward()
        grads.append(table.grad)
        assert bool(sizes & set(kept)) == (one is floats)
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_an_expert_that_no_token_is_routed_to_is_not_touched(way: str) -> None:
    """It may be NaN. Two experts of four serve one token."""
    model = coded()
    model.config._experts_implementation = way
    one = {"input_ids": BATCH["input_ids"][:1, :1]}
    before = logits(model, one)
    hit: dict[str, set[int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Experts):
            module.register_forward_pre_hook(lambda m, args, p=path: hit.update({p: set(args[1].flatten().tolist())}))
    logits(model, one)
    assert [len(found) for found in hit.values()] == [2, 2]
    for path, found in hit.items():
        for stack in model.get_submodule(path).coded.values():
            stack.absmax[[e for e in range(4) if e not in found]] = torch.nan
    assert torch.equal(logits(model, one), before)


@pytest.mark.parametrize("kind", MODELS)
def test_survives_folders_states_and_copies(kind: str, tmp_path: Path) -> None:
    model = coded(kind)
    wanted = logits(model, BATCH)
    model.save_pretrained(tmp_path)
    import featherweight.interop.hf_quantizer  # noqa: F401

    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, BATCH), wanted)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    fresh = mixture(kind)
    fw.quantize(fresh.double().float(), NF4)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, BATCH), wanted)
    half = copy.deepcopy(model).bfloat16()
    assert experts(half).gate_up_proj.dtype == torch.bfloat16
    assert torch.equal(experts(half).coded.gate_up_proj.absmax, experts(model).coded.gate_up_proj.absmax)


def test_corrupted_and_missing_codes_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    import featherweight.interop.hf_quantizer as hf
    from featherweight.interop.stream import checkpoint

    coded("qwen3-moe").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{PATH}.coded.down_proj.codes"][1, 7] ^= 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"{PATH}\.coded\.down_proj: corrupted codes"):
        transformers.Qwen3MoeForCausalLM.from_pretrained(tmp_path)
    del tensors[f"{PATH}.coded.down_proj.codes"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    token = hf.JOB.set(hf.Job(stored=checkpoint(tmp_path)))
    try:
        with pytest.raises(InputError, match=r"down_proj\.codes: missing tensor of a quantized layer"):
            transformers.Qwen3MoeForCausalLM.from_pretrained(tmp_path)
    finally:
        hf.JOB.reset(token)


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("which", ["experts", "experts.down_proj"])
def test_lora_on_experts_of_codes(kind: str, which: str) -> None:
    """As over the decoded weights, in training, merged for a while, merged for good and encoded again."""
    model = fw.attach(coded(kind), fw.ExpertLoRA(rank=2, experts=which))
    disturb(model)
    floats = plain(model)
    losses = [one(**BATCH).logits.square().mean() for one in (model, floats)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    mine, theirs = ({n: p.grad for n, p in one.named_parameters() if p.requires_grad} for one in (model, floats))
    assert mine.keys() == theirs.keys()
    for name, grad in mine.items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-3, msg=name)
    on = logits(model, BATCH)
    with fw.merged(model):
        torch.testing.assert_close(logits(model, BATCH), on, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(model, BATCH), on)
    report = fw.merge_report(model)
    assert {row.where for row in report.tensors} == {f"{p}.{n}" for p, m in model.named_modules() if isinstance(m, Experts) for n in m.adapters["default"].ranks}  # fmt: skip  # noqa: E501
    lossy = fw.merge(copy.deepcopy(model), requantize=True)
    assert isinstance(experts(lossy).coded.down_proj, Stack)
    assert not torch.equal(logits(lossy, BATCH), on)
    whole = fw.merge(model)
    torch.testing.assert_close(logits(whole, BATCH), on, atol=1e-5, rtol=1e-4)
    assert type(experts(whole)._parameters["down_proj"]) is nn.Parameter
    assert ("gate_up_proj" in experts(whole)._parameters) == (which == "experts")


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_lora_on_experts_keeps_no_matrix(way: str) -> None:
    """Neither for the forward pass nor as a gradient: what is beside a matrix is added beside its product."""
    model, seen = fw.attach(coded(), fw.ExpertLoRA(rank=8)), set()
    disturb(model)
    model.config._experts_implementation = way

    def note(t: Tensor) -> Tensor:
        seen.update([] if isinstance(t, Lazy) else [tuple(sorted(t.shape[-2:]))])
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(**BATCH).logits.square().mean().backward()
    assert not seen & {(32, 48), (32, 96)}


def test_the_fingerprint_of_a_base_covers_its_experts(tmp_path: Path) -> None:
    """An adapter is refused over other experts, if all else is the same."""
    model = coded()
    assert fingerprint(model).parameters == fw.trainable(model).total
    fw.save(fw.attach(model, fw.LoRA(rank=2)), tmp_path)
    fw.load(coded(), tmp_path)
    other = coded()
    experts(other).coded.down_proj.codes ^= 1
    with pytest.raises(InputError, match=rf"another base; the first tensor that differs .* {PATH}\.down_proj"):
        fw.load(other, tmp_path)


def test_qlora_on_all_of_a_mixture_learns() -> None:
    model = fw.attach(coded("qwen3-moe"), fw.ExpertLoRA(rank=4, targets="linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    batch = BATCH | {"labels": BATCH["input_ids"]}
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(("options", "stays"), [
    ({"skip": "down"}, {"down_proj"}),
    ({"skip": "experts"}, {"down_proj", "gate_up_proj"}),
    ({"skip": "experts.gate_up_proj"}, {"gate_up_proj"}),
    ({"targets": "experts"}, set()),
    ({"targets": "mlp"}, set()),
    ({"targets": "attention"}, {"down_proj", "gate_up_proj"}),
    ({"targets": lambda p, _: p.endswith("down_proj")}, {"gate_up_proj"}),
])  # fmt: skip
def test_targets_and_what_to_skip(options: Any, stays: set[str]) -> None:
    model = mixture("mixtral")
    total = sum(p.numel() for p in model.parameters())
    report = fw.quantize(model, NF4, **options)
    assert set(experts(model)._parameters) == stays
    assert logits(model, BATCH).isfinite().all()
    assert sum(s.parameters for s in report.skipped) + sum(torch.Size(x.shape).numel() for x in report.layers) == total
    fresh = mixture("mixtral")
    for recipe in recipes(model):
        fw.quantize(fresh, recipe.scheme, targets=recipe.targets, skip=recipe.skip)
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert recipes(model) != (Recipe(NF4),)


def test_the_recipe_of_a_whole_mixture() -> None:
    assert recipes(coded()) == (Recipe(NF4),)
    assert recipes(coded("qwen2-moe")) == (Recipe(NF4),)
    calibrated = mixture("mixtral")
    fw.quantize(calibrated, fw.GPTQ(bits=4, group=16), batches=[BATCH])
    assert recipes(calibrated) == (Recipe(fw.GPTQ(bits=4, group=16)),)


def test_what_cannot_be_says_why() -> None:
    model = mixture("mixtral")
    report = fw.quantize(model, fw.GPTQ(bits=4, group=16), batches=[BATCH])
    reasons = {s.path: s.reason for s in report.skipped}
    assert reasons[f"{PATH}.down_proj"] == "what each expert reads is not known: GPTQ is calibrated on it"
    assert logits(model, BATCH).isfinite().all()
    broken = mixture("mixtral")
    with torch.no_grad():
        experts(broken).down_proj[1, 2, 3] = torch.inf
    with pytest.raises(InputError, match=rf"{PATH}\.down_proj: values that are not finite; got 1 of"):
        fw.quantize(broken, NF4)
    assert type(experts(broken).gate_up_proj) is nn.Parameter
    model = coded()
    with pytest.raises(InputError, match="experts kept as codes cannot be written"):
        experts(model).down_proj.zero_()
    with pytest.raises(InputError, match=r"cannot be trained: kept as codes of NF4"):
        fw.attach(model, fw.Full())
    with pytest.raises(InputError, match=r"coded\.gate_up_proj: not a linear layer.*--skip model\.layers\.0"):
        fw.save_quantized(model, "never", "bitsandbytes")
    assert set(encoded(experts(model))) == {"gate_up_proj", "down_proj"}


class Loose(nn.Module):
    """Experts in ways that no transformers' model goes: all at once, turned, by einsum, and by a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x: Tensor) -> list[Tensor]:
        W, ids = self.W, torch.tensor([2, 0, 2])
        return [
            torch.bmm(x.expand(3, -1, -1), W.transpose(1, 2)), torch.bmm(W[ids], x.mT.expand(3, -1, -1)),
            torch.einsum("eoi,ni->eno", W, x), x @ W[1].T, x @ W[torch.tensor(-1)].mT, (W * 2).sum((1, 2)),
            W.to(torch.float64).mean(0), torch.addmm(torch.ones(8), x, W[0].t()), W[ids, 1], W[0, 1:], W.clone(),
        ]  # fmt: skip


def test_other_uses() -> None:
    model = nn.ModuleList([Loose()])
    fw.quantize(model, NF4, targets="W")
    floats, x = plain(model), torch.randn(5, 6)
    assert repr(model[0].W) == "Lazy((3, 8, 6), NF4(block=32))"
    for got, wanted in zip(model[0](x), floats[0](x), strict=True):
        torch.testing.assert_close(got, wanted)


def test_planned_without_storage() -> None:
    """The planner counts the codes that quantizing makes, and its step runs over them."""
    from featherweight.plan.shell import frozen_bytes, quantized

    real = coded("mixtral", fw.NF4(double=True))
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(real.config)
    quantized(model, Recipe(fw.NF4(double=True)))
    assert frozen_bytes(model) == frozen_bytes(real)

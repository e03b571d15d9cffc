"""Calibration: what each module is encoded from, whatever way its model is run."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support import zoo
from support.models import EVERY, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.part import Part, transposed
from featherweight.quant.calibrate import calibrated, tokens
from featherweight.quant.chain import Chain, Undrivable
from featherweight.quant.gptq import GPTQ, Hessian
from featherweight.quant.scheme import Scheme

FOUR = GPTQ(bits=4, group=16)


@dataclass(frozen=True)
class Spot:
    path: str
    module: Any


@dataclass(frozen=True, repr=False)
class Seen(Scheme):
    """Keeps what it has seen of the inputs and rounds weights to whole numbers of tenths."""

    @property
    def calibrated(self) -> bool:
        return True

    def watch(self, features: int) -> Hessian:
        return Hessian(features)

    def encode(self, W: Tensor, seen: Any = None) -> dict[str, Tensor]:
        return {"tenths": (W * 10).round(), "H": seen.H.clone(), "tokens": torch.tensor(seen.tokens)}

    def decode(self, packed: Any, shape: Any, dtype: torch.dtype) -> Tensor:
        return (packed["tenths"] / 10).to(dtype)


del Scheme.known["seen"]  # laws that go through every scheme shall not meet it


def spots(model: nn.Module) -> list[Spot]:
    """Linear layers inside of the model's blocks and outside of them."""
    return [Spot(p, m) for p, m in model.named_modules() if type(m) is nn.Linear or transposed(m)]


def two(arch: str) -> list[dict[str, Tensor]]:
    """Two batches of different sizes."""
    return [inputs(arch), inputs(arch, rows=3) if arch in ("unet", "vit", "whisper") else inputs(arch, 3, 9)]


def reference(model: nn.Module, order: list[str], scheme: Scheme, batches: list[Any]) -> dict[str, Any]:
    """One place after another, by whole passes of a model whose weights become the decoded ones."""
    packed = {}
    for path in order:
        part, module = Part(model.get_submodule(path)), model.get_submodule(path)
        watch = scheme.watch(part.in_features)
        hook = module.register_forward_pre_hook(lambda _, args, w=watch: w.add(args[0].reshape(-1, args[0].shape[-1])))
        for batch in batches:
            logits(model, batch)
        hook.remove()
        packed[path] = scheme.encode(part.weight.detach(), watch)
        decoded = scheme.decode(packed[path], tuple(part.weight.shape), torch.float32)
        module.weight.data.copy_(decoded.T if part.flip else decoded)
    return packed


@pytest.mark.parametrize("arch", EVERY)
def test_every_module_is_encoded_from_the_inputs_it_will_have(arch: str) -> None:
    model, batches = tiny(arch), two(arch)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = calibrated(model, spots(model), Seen(), batches)
    expected = reference(tiny(arch), list(found), Seen(), batches)
    assert set(found) == {s.path for s in spots(model)}
    for path in found:
        for name in expected[path]:
            torch.testing.assert_close(found[path][name], expected[path][name], rtol=1e-4, atol=1e-5)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())


def test_every_block_is_told_as_it_is_done() -> None:
    seen: list[tuple[int, int]] = []
    model = tiny("llama")
    calibrated(model, spots(model), Seen(), two("llama"), told=lambda done, all_: seen.append((done, all_)))
    count = len(spots(model))
    assert seen[-1] == (count, count)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= 2


@pytest.mark.parametrize("arch", EVERY)
def test_blocks_of_every_architecture_are_driven_alone(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback that nobody sees would make calibration many times slower."""
    failed: list[Undrivable] = []
    of = Chain.of

    def noted(*args: Any) -> Chain:
        try:
            return of(*args)
        except Undrivable as error:
            failed.append(error)
            raise

    monkeypatch.setattr(Chain, "of", noted)
    model = tiny(arch)
    calibrated(model, spots(model), Seen(), two(arch))
    assert not failed


def test_a_block_that_is_called_again_and_again_has_the_model_run_whole() -> None:
    torch.manual_seed(0)
    model = zoo.build(*zoo.ZOO["albert"][:3]).eval()
    with pytest.raises(Undrivable, match="once each, in order"):
        Chain.of(list(model.albert.encoder.albert_layer_groups), [lambda: logits(model, inputs("bert"))])
    other = deepcopy(model)
    found = calibrated(model, spots(model), Seen(), [inputs("bert")])
    for path, packed in reference(other, list(found), Seen(), [inputs("bert")]).items():
        torch.testing.assert_close(found[path], packed, rtol=1e-4, atol=1e-5)
    assert found["albert.encoder.albert_layer_groups.0.albert_layers.0.ffn"]["tokens"] == 2 * 7 * 2  # two passes


class Between(nn.Module):
    """Three blocks and one thing done to what passes between them."""

    def __init__(self, between: str):
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.layers = nn.ModuleList(Block(between) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = x = x.clone()
        cache: list[Tensor] | None = [] if self.between == "cache" else None
        for i, layer in enumerate(self.layers):
            if self.between == "changed" and i:
                x = x * 1.5
            if self.between == "written" and i:
                x += 1.0
            y = layer(x, first if self.between != "from the output" or not i else x.mean(1, keepdim=True), cache)
            if self.between == "skip" and i == 1:
                y = layer(y, first, cache)
            first = y if self.between == "from before" and i == 0 else first
            x = y
        return x


class Block(nn.Module):
    def __init__(self, between: str):
        super().__init__()
        self.fc, self.between = nn.Linear(6, 6), between

    def forward(self, x: Tensor, first: Tensor, cache: list[Tensor] | None) -> Tensor:
        if cache is not None:
            cache.append(x)
            return self.fc(x) + sum(cache)
        if self.between == "writes":
            first.add_(0.1)
        y = self.fc(x).tanh() + x + first
        return y + self.rare(x) if hasattr(self, "rare") and len(x) == 1 else y


@pytest.mark.parametrize(
    "between",
    ["", "changed", "written", "from the output", "from before", "skip", "writes", "cache"],
)
def test_whatever_happens_between_blocks_the_inputs_are_right(between: str) -> None:
    batches = [{"x": torch.randn(2, 5, 6)}, {"x": torch.randn(1, 3, 6)}]
    model, other = Between(between), Between(between)
    runs = [lambda b=b: model(**b) for b in batches]
    if between == "":
        Chain.of(list(model.layers), runs)
    else:
        with pytest.raises(Undrivable):
            Chain.of(list(model.layers), runs)

    found = calibrated(model, spots(model), Seen(), batches)
    expected = {}
    for path in found:
        module = other.get_submodule(path)
        watch = Hessian(6)
        hook = module.register_forward_pre_hook(lambda _, args, w=watch: w.add(args[0].detach().reshape(-1, 6)))
        with torch.no_grad():
            for b in batches:
                other(**b)
        hook.remove()
        expected[path] = Seen().encode(module.weight.detach(), watch)
        module.weight.data.copy_(Seen().decode(expected[path], (6, 6), torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen() -> None:
    model, plain = tiny("bert"), inputs("bert", 2, 5)
    padded = {"input_ids": torch.cat([plain["input_ids"], torch.zeros(2, 3, dtype=torch.long)], 1),
              "attention_mask": torch.tensor([[1] * 5 + [0] * 3] * 2)}  # fmt: skip
    a, b = (calibrated(model, spots(model)[:6], Seen(), [batch]) for batch in (plain, padded))
    for path in a:
        assert a[path]["tokens"] == b[path]["tokens"] == 10
        torch.testing.assert_close(a[path]["H"], b[path]["H"], rtol=1e-4, atol=1e-5)


def test_which_mask_is_meant() -> None:
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    ids, long = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    assert len(tokens(x, {"input_ids": ids, "attention_mask": mask, "labels": ids})) == 6
    assert len(tokens(x, {"input_ids": long, "attention_mask": torch.ones(2, 6), "labels": ids}, pair=True)) == 8
    assert len(tokens(x, {"input_ids": ids, "attention_mask": mask, "labels": long}, pair=True)) == 6
    both = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}
    assert len(tokens(x, both, pair=True)) == 8  # it cannot be known: nothing is left out
    assert len(tokens(x[0], both)) == 4


def test_what_is_never_called_is_an_error_and_nothing_has_changed() -> None:
    model = tiny("llama")
    model.model.layers[1].spare, model.model.layers[1].more = nn.Linear(3, 3), nn.Linear(3, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        calibrated(model, spots(model), FOUR, two("llama"))
    assert [p.where for p in caught.value.problems] == ["model.layers.1.spare", "model.layers.1.more"]
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_what_only_a_later_batch_reaches_is_calibrated_on_that() -> None:
    model = Between("")
    model.layers[1].rare = nn.Linear(6, 6)
    found = calibrated(model, spots(model), Seen(), [{"x": torch.randn(2, 5, 6)}, {"x": torch.randn(1, 3, 6)}])
    assert found["layers.1.rare"]["tokens"] == 3
    assert found["layers.1.fc"]["tokens"] == 13


def test_bad_batches_are_named() -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match="nothing to calibrate on"):
        calibrated(model, spots(model), FOUR, [])
    with pytest.raises(InputError, match=r"batches\[1\].*a mapping of the model's inputs.*got list"):
        calibrated(model, spots(model), FOUR, [inputs("llama"), [1, 2]])  # type: ignore[list-item]


def test_what_is_no_linear_layer_is_named() -> None:
    model = tiny("llama")
    places = [*spots(model), Spot("model.embed_tokens", model.model.embed_tokens), Spot("model.norm", model.model.norm)]
    with pytest.raises(InputError) as caught:
        calibrated(model, places, FOUR, two("llama"))
    assert [p.where for p in caught.value.problems] == ["model.embed_tokens", "model.norm"]


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = tiny("llama").train()
    model.model.layers[1].mlp.up_proj.weight.data[:] = float("nan")
    before = logits(model, inputs("llama"))
    with pytest.raises(fw.FeatherweightError, match="not finite"):
        calibrated(model, spots(model), FOUR, two("llama"))
    assert all(m.training for m in model.modules())
    assert model.config.use_cache
    assert not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert logits(model, inputs("llama")).isnan().equal(before.isnan())


def test_adapters_are_off_and_on_again() -> None:
    model, bare = tiny("llama"), tiny("llama")
    expected = calibrated(bare, spots(bare), FOUR, two("llama"))
    places = spots(model)
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), name="a")
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_()
    on = logits(model, inputs("llama"))
    found = calibrated(model, places, FOUR, two("llama"))
    torch.testing.assert_close(found, expected)
    assert logits(model, inputs("llama")).equal(on)


def test_all_of_a_block_at_once_sees_the_same_block_inputs() -> None:
    model = tiny("llama")
    a, b = (calibrated(model, spots(model), Seen(), two("llama"), sequential=s) for s in (True, False))
    for path in a:
        first = path.endswith(("q_proj", "k_proj", "v_proj")) and ".0." in path
        same = torch.allclose(a[path]["H"], b[path]["H"], rtol=1e-4, atol=1e-5)
        assert same or not first
    assert not torch.allclose(a["model.layers.0.mlp.down_proj"]["H"], b["model.layers.0.mlp.down_proj"]["H"], rtol=1e-4)


def test_modules_of_half_precision() -> None:
    model = tiny("llama", torch.bfloat16)
    found = calibrated(model, spots(model), replace(FOUR, act_order=True), two("llama"))
    for path, packed in found.items():
        W = model.get_submodule(path).weight
        decoded = replace(FOUR, act_order=True).decode(packed, tuple(W.shape), torch.float32)
        assert (decoded - W).norm() < 0.3 * W.norm()

"""Methods on live bitsandbytes and torchao layers: forward ≡ merge, gradients, modes, refusals, detach."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.foreign import LAYERS, Two, four, values
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.errors import InputError

SEATS: dict[str, Any] = {"targets": "q|v"}
METHODS = [
    fw.LoRA(rank=3, **SEATS),
    fw.LoRA(rank=3, targets="q"),
    fw.DoRA(rank=3, **SEATS),
    fw.BitFit(),
    fw.Scaling(rank=2, **SEATS),
]
everywhere = pytest.mark.parametrize("kind", LAYERS)


def two(kind: str, K: int = 64, inner: int = 64, N: int = 32) -> Any:
    return Two(LAYERS[kind](K, inner), LAYERS[kind](inner, N))


def batch(K: int = 64) -> Tensor:
    return torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1))


def stirred(net: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(5)
    for p in net.parameters():
        if p.requires_grad:
            p.data += torch.randn(p.shape, generator=g) * 0.1
    return net


def raw(tensor: Any) -> Tensor:
    """A tensor's bytes: as numbers, bytes in the guise of bf16 may be NaN."""
    plain = tensor.dequantize() if type(tensor).dequantize is not Tensor.dequantize else tensor.clone()
    return plain.reshape(-1).view(torch.uint8)


@everywhere
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_forward_is_what_merging_gives_and_detach_gives_all_back(kind: str, method: Any) -> None:
    net, x = two(kind), batch().requires_grad_()
    classes, before = [type(net.q), type(net.v)], {k: raw(t) for k, t in net.state_dict().items()}
    out = net(x.detach())
    stirred(fw.attach(net, method))
    assert [type(net.q).__name__, type(net.v).__name__] == [c.__name__ for c in classes]
    assert before.keys() <= net.state_dict().keys()
    y = net(x)
    with fw.merged(net):
        torch.testing.assert_close(net(x), y, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(y, out, atol=1e-2)
    fw.detach(net)
    assert [type(net.q), type(net.v)] == classes
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(raw(after[k]), before[k]) for k in before)
    assert torch.equal(net(x.detach()), out)


@everywhere
@pytest.mark.parametrize("K", [64, 48, 80, 160, 7])
def test_output_and_gradients_are_those_of_what_the_codes_say(kind: str, K: int) -> None:
    """Where bitsandbytes itself is wrong (48, 80, 160) and where torchao loses the gradient (int8 activations)."""
    net = two(kind, K)
    plain = Two(nn.Linear(K, 64), nn.Linear(64, 32)).requires_grad_(False)
    for mine, theirs in ((plain.q, net.q), (plain.v, net.v)):
        mine.weight.copy_(values(theirs))  # type: ignore[operator]
        mine.bias.copy_(theirs.bias)  # type: ignore[operator]
    x = batch(K).requires_grad_()
    found = []
    for model in (net, plain):
        torch.manual_seed(2)
        stirred(fw.attach(model, fw.LoRA(rank=3, **SEATS)))
        y = model(x)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *trained])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@everywhere
def test_gradients_survive_an_evaluation(kind: str) -> None:
    net = stirred(fw.attach(two(kind), fw.LoRA(rank=3, targets="q")))
    trained = [p for p in net.parameters() if p.requires_grad]

    def step() -> list[Tensor]:
        y = net.train()(batch())
        return [y, *torch.autograd.grad(y.square().sum(), trained)]

    first = step()
    with torch.no_grad():
        net.eval()(batch())
    assert all(map(torch.equal, first, step()))


@pytest.mark.parametrize("double", [False, True])
def test_a_layer_evaluated_before_the_attach_keeps_its_values_and_gets_gradients(double: bool) -> None:
    """In eval mode bitsandbytes rewrites codes and rounds scales to bf16, on CPUs with AVX-512 BF16."""
    net = Two(four(64, 64, compress_statistics=double), four(64, 32, compress_statistics=double))
    fresh = [values(net.q), values(net.v)]
    net.eval()(batch())
    fw.attach(net, fw.LoRA(rank=3, targets="q"))
    y = net.train()(batch())
    trained = [p for n, p in net.named_parameters() if n.endswith("lora_B.weight")]
    assert torch.autograd.grad(y.square().sum(), trained)[0].abs().sum() > 0
    expected = nn.functional.gelu(nn.functional.linear(batch(), fresh[0], net.q.bias))  # type: ignore[arg-type]
    expected = nn.functional.linear(expected, fresh[1], net.v.bias)  # type: ignore[arg-type]
    assert float((y.detach() - expected).norm() / expected.norm()) < 4e-3  # bf16 scales
    fw.detach(net)
    torch.testing.assert_close(values(net.q), fresh[0], rtol=8e-3, atol=0)


@everywhere
def test_full_tuning_of_codes_is_refused_and_leaves_the_model_alone(kind: str) -> None:
    net = two(kind)
    classes = [type(net.q), type(net.v)]
    with pytest.raises(InputError, match=r"q, v: .*kept as codes"):
        fw.attach(net, fw.Full())
    assert [type(net.q), type(net.v)] == classes


@everywhere
def test_merging_makes_plain_layers(kind: str) -> None:
    net, x = two(kind), batch().requires_grad_()
    stirred(fw.attach(net, fw.LoRA(rank=3, **SEATS)))
    y = net(x)
    fw.merge(net)
    assert type(net.q) is nn.Linear
    torch.testing.assert_close(net(x), y, rtol=1e-5, atol=2e-6)
    assert set(net.state_dict()) == {"q.weight", "q.bias", "v.weight", "v.bias"}
    assert vars(net.q).keys() == vars(nn.Linear(1, 1)).keys()


@pytest.mark.parametrize("kind", ["nf4", "fp4-plain-scales", "nf4-in-bf16-bytes", "int8"])
def test_merging_into_codes_is_what_its_library_would_make(kind: str) -> None:
    net = two(kind)
    stirred(fw.attach(net, fw.LoRA(rank=3, **SEATS)))
    with fw.merged(net):
        W = net.q.weight.clone()
    with fw.merged(net, requantize=True):
        kept = net.q.weight.clone()
    fw.merge(net, requantize=True)
    layer = LAYERS[kind](64, 64)
    assert type(net.q) is type(layer)
    torch.testing.assert_close(values(net.q), kept, rtol=1e-3, atol=1e-6)
    assert 0 < float((kept - W).norm() / W.norm()) < 0.2


def test_torchao_codes_are_not_made_again() -> None:
    net = fw.attach(two("torchao-int8"), fw.LoRA(rank=3, **SEATS))
    stirred(net)
    with pytest.raises(InputError, match=r"cannot be encoded again.*floating point"):
        fw.merge(net, requantize=True)


@everywhere
def test_copies_are_independent(kind: str) -> None:
    net, x = two(kind), batch().requires_grad_()
    stirred(fw.attach(net, fw.LoRA(rank=3, **SEATS)))
    y = net(x)
    other = copy.deepcopy(net)
    stirred(other)
    assert torch.equal(net(x), y)
    assert not torch.equal(other(x), y)
    if "torchao" not in kind:  # which hangs a function that does not pickle on its layers
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)


def test_torchao_runs_its_own_product_where_nothing_is_trained() -> None:
    net = two("torchao-int8-activations")
    out = net(batch())
    fw.attach(net, fw.LoRA(rank=3, **SEATS))
    with torch.no_grad():
        assert torch.equal(net(batch()), out)
    assert 0 < float((net(batch().requires_grad_()).detach() - out).norm() / out.norm()) < 0.02  # rounding of the input


def test_layers_that_are_not_quantized_yet_are_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    net = Two(bnb.nn.Linear4bit(64, 64), bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False))
    with pytest.raises(InputError, match="not quantized yet") as caught:
        fw.attach(net, fw.LoRA(rank=3, **SEATS))
    assert [p.where for p in caught.value.problems] == ["q", "v"]
    fw.attach(net.to("cpu"), fw.LoRA(rank=3, **SEATS))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_compiled_graph_is_whole(kind: str) -> None:
    net = stirred(fw.attach(two(kind), fw.LoRA(rank=3, **SEATS)))
    with torch.no_grad():
        expected = net(batch())
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(batch()), expected)
    x, other = batch().requires_grad_(), batch().requires_grad_()
    torch.compile(net, fullgraph=True, backend="aot_eager")(x).sum().backward()
    net(other).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_16_bit_layers_compute_as_bitsandbytes_trains() -> None:
    layer = four(64, 32, compute_dtype=torch.bfloat16)
    x = batch()
    out = layer.train()(x)
    assert out.dtype is torch.float32  # by way of bf16, back in the dtype that came
    net = Two(layer, nn.Linear(32, 8).requires_grad_(False))
    fw.attach(net, fw.LoRA(rank=3, targets="v"))
    assert torch.equal(net.q(x), out)

"""Houlsby, Pfeiffer, Lin and parallel adapters by hand: equations, places, counts, the start, AdapterDrop."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.models import ARCHITECTURES, EVERY, disturb, inputs, logits, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.core.adapter import Replace
from featherweight.core.host import Host, hosts
from featherweight.core.state import adapters, state
from featherweight.methods.bottleneck import ACTIVATIONS, Bottleneck, Inserted

KINDS = (fw.Houlsby, fw.Pfeiffer, fw.Lin, fw.Parallel)


def attached(arch: str, method: Any, seed: int = 3) -> Any:
    """A moved model: no law holds for lack of an effect."""
    torch.manual_seed(0)
    model = fw.attach(tiny(arch), method, "a", head=False)
    disturb(model, 0.3, seed)
    return model


def g(model: nn.Module, path: str, act: Any, x: Tensor) -> Tensor:
    """U act(D x + c) + e from the saved tensors."""
    own = {k.removeprefix(f"{path}."): t for k, t in state(model, "a").items() if k.startswith(f"{path}.")}
    if "norm.weight" in own:
        x = F.layer_norm(x, x.shape[-1:], own["norm.weight"], own["norm.bias"])
    y = act(x @ own["down.weight"].T + own["down.bias"]) @ own["up.weight"].T + own["up.bias"]
    return y * own.get("scale", 1.0)


def hidden(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def plain_bert(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Any]:
    """BERT's attention output before the sum, and what is needed to go on by hand."""
    context = layer.attention.self(x)[0]
    return layer.attention.output.dense(context), x, layer


@pytest.mark.parametrize("norms", [True, False])
def test_houlsby_is_the_published_equation(norms: bool) -> None:
    """norm'(x + h + g(h)) behind attention and behind the feed-forward, the norms trained."""
    model = attached("bert", fw.Houlsby(bottleneck=4, activation="relu", norms=norms))
    layer, at = model.bert.encoder.layer[0], "bert.encoder.layer.0"
    out = hidden(layer(X)).detach()
    own = state(model, "a")
    fw.switch(model, None)

    def norm(path: str, z: Tensor) -> Tensor:
        module = model.get_submodule(path)
        gain, shift = (own.get(f"{path}.{n}", getattr(module, n)) for n in ("weight", "bias"))
        return F.layer_norm(z, (32,), gain, shift, module.eps)

    with torch.no_grad():
        h = layer.attention.output.dense(layer.attention.self(X)[0])
        path = f"{at}.attention.output"
        a = norm(f"{path}.LayerNorm", X + h + g(model, f"{path}.dense", F.relu, h))
        h = layer.output.dense(F.gelu(layer.intermediate.dense(a)))
        expected = norm(f"{at}.output.LayerNorm", a + h + g(model, f"{at}.output.dense", F.relu, h))
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    assert (f"{at}.output.LayerNorm.weight" in own) is norms


def test_pfeiffer_reads_the_normalized_sum_where_there_is_one() -> None:
    model = attached("bert", fw.Pfeiffer(bottleneck=4))
    layer, path = model.bert.encoder.layer[0], "bert.encoder.layer.0.output.LayerNorm"
    out = hidden(layer(X)).detach()
    fw.switch(model, None)
    with torch.no_grad():
        a = layer.attention.output.LayerNorm(X + layer.attention.output.dense(layer.attention.self(X)[0]))
        h = layer.output.dense(F.gelu(layer.intermediate.dense(a)))
        norm = layer.output.LayerNorm
        expected = norm(a + h + g(model, path, F.relu, norm(a + h)))
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", [fw.Pfeiffer(bottleneck=4), fw.Lin(bottleneck=4)], ids=repr)
@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_on_pre_norm_blocks_pfeiffer_and_lin_read_the_residual_stream(arch: str, method: Any) -> None:
    """y = o + g(o), Lin's g with a norm of its own in front."""
    model = attached(arch, method)
    path, block = next((p, h) for p, h in hosts(model))
    seen = []
    block.register_forward_hook(lambda _m, _a, out: seen.append(hidden(out)))
    logits(model, inputs(arch))
    with fw.switch(model, None):
        logits(model, inputs(arch))
    after, before = seen
    torch.testing.assert_close(after, before + g(model, path, F.relu, before), atol=1e-6, rtol=1e-6)
    assert ("norm.weight" in {k.removeprefix(f"{path}.") for k in state(model, "a")}) is isinstance(method, fw.Lin)


@pytest.mark.parametrize("arch", ["bert", "gpt2", "t5", "bart", "opt", "whisper", "mixtral", "distilbert"])
def test_parallel_adds_to_the_feed_forward_what_it_makes_of_its_input(arch: str) -> None:
    """FF(x) + s g(x), whether the feed-forward is a module, two modules, or two layers of its block."""
    model = attached(arch, fw.Parallel(bottleneck=4, scale=2.0))
    ends = {
        "bert": ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.LayerNorm"),
        "gpt2": ("transformer.h.0.mlp.c_fc", "transformer.h.0.mlp"),
        "t5": ("encoder.block.0.layer.1.DenseReluDense.wi_1", "encoder.block.0.layer.1.DenseReluDense"),
        "bart": ("model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"),
        "opt": ("model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2"),
        "whisper": ("model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"),
        "mixtral": ("model.layers.0.mlp", "model.layers.0.mlp"),
        "distilbert": ("distilbert.transformer.layer.0.ffn.lin1", "distilbert.transformer.layer.0.ffn"),
    }
    start, end = (model.get_submodule(p) for p in ends[arch])
    xs, ys = [], []
    start.register_forward_pre_hook(lambda _, a: xs.append(a[0].detach()))
    if arch == "bert":
        end.register_forward_pre_hook(lambda _, a: ys.append(a[0].detach()))
    else:
        end.register_forward_hook(lambda _m, _a, y: ys.append(hidden(y).detach()))
    path = next(p for p, a in adapters(model, "a").items() if isinstance(a, Bottleneck))
    logits(model, inputs(arch))
    with fw.switch(model, None):
        logits(model, inputs(arch))
    half = len(xs) // 2
    torch.testing.assert_close(xs[0], xs[half])  # everything before the first block's feed-forward is the base's
    torch.testing.assert_close(ys[0], ys[half] + 2.0 * g(model, path, F.relu, xs[0]), atol=2e-6, rtol=1e-5)


def test_parallel_may_read_the_residual_in_front_of_the_norm() -> None:
    model = attached("llama", fw.Parallel(bottleneck=4, scale=1.0, reads="residual"))
    block = model.model.layers[0]
    xs, ys = [], []
    block.post_attention_layernorm.register_forward_pre_hook(lambda _, a: xs.append(a[0].detach()))
    block.mlp.register_forward_hook(lambda _m, _a, y: ys.append(y.detach()))
    logits(model, inputs("llama"))
    with fw.switch(model, None):
        logits(model, inputs("llama"))
    path = "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(ys[0], ys[1] + g(model, path, F.relu, xs[0]), atol=2e-6, rtol=1e-5)
    same = [p for p, _ in hosts(fw.attach(tiny("bert"), fw.Parallel(reads="residual"), head=False))]
    assert same == [p for p, _ in hosts(fw.attach(tiny("bert"), fw.Parallel(), head=False))]


# model -> (blocks, places of Houlsby without and with cross-attention, norms as wide as the residual stream)
SIZES = dict.fromkeys(EVERY, (2, 4, 4, 4)) | {
    "t5": (4, 8, 10, 10), "bart": (4, 8, 10, 10), "whisper": (4, 8, 10, 10), "unet": (2, 4, 6, 6),
    "falcon": (2, 4, 4, 2),
}  # fmt: skip


@pytest.mark.parametrize("arch", EVERY)
def test_counts(arch: str) -> None:
    """2 d b + b + d for each bottleneck, and what each method adds."""
    d, b = 32, 4
    one = 2 * d * b + b + d
    blocks, places, cross, norms = SIZES[arch]
    width = {"houlsby": places * one, "cross": cross * one, "lin": blocks * (one + 2 * d), "parallel": blocks * one}

    def count(method: Any) -> int:
        model = tiny(arch)
        total = sum(p.numel() for p in model.parameters())
        counts = fw.trainable(fw.attach(model, method, head=False))
        trained_norms = sum(
            p.numel() for a in adapters(model, "default").values() if isinstance(a, Replace) for p in a.parameters()
        )
        assert counts.total == total + counts.trainable - trained_norms
        return counts.trainable

    assert count(fw.Houlsby(bottleneck=b, norms=False)) == width["houlsby"]
    assert count(fw.Houlsby(bottleneck=b, norms=False, cross=True)) == width["cross"]
    bias = sum(1 for _, m in tiny(arch).named_modules() if isinstance(m, nn.LayerNorm)) > 0
    assert count(fw.Houlsby(bottleneck=b)) == width["houlsby"] + norms * d * (2 if bias else 1)
    assert count(fw.Lin(bottleneck=b)) == width["lin"]
    assert count(fw.Parallel(bottleneck=b)) == width["parallel"]
    assert count(fw.Parallel(bottleneck=b, scale="learned")) == width["parallel"] + blocks
    if arch != "unet":
        assert count(fw.Pfeiffer(bottleneck=b)) == blocks * one


def test_reduction_gives_the_bottleneck_and_skip_leaves_blocks_out() -> None:
    for method, b in ((fw.Pfeiffer(reduction=5), 6), (fw.Pfeiffer(reduction=99), 1), (fw.Pfeiffer(reduction=0.5), 64)):
        assert fw.trainable(fw.attach(tiny("bert"), method, head=False)).trainable == 2 * (2 * 32 * b + b + 32)
    for kind in KINDS:
        whole, some = (list(adapters(fw.attach(tiny("bart"), kind(skip=k), "a"), "a")) for k in (0, 3))
        assert {p for p in whole if "decoder.layers.1" in p} == set(some)


def test_the_start_is_near_the_identity_at_full_width() -> None:
    """Every block of BERT-base's width with the default sizes; a start ten times as wide is not near."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=4, vocab_size=99)).eval()
    ids = inputs("bert")["input_ids"]
    with torch.no_grad():
        before = model(ids).last_hidden_state
    for method in (fw.Houlsby(), fw.Pfeiffer(), fw.Lin(), fw.Parallel(), fw.Compacter(), fw.Compacter(plus=True)):
        fw.attach(model, method)
        far = []
        for widened in (1, 10):
            with torch.no_grad():
                for k, p in model.named_parameters():
                    if k.endswith(("down.weight", "up.weight")):
                        p.mul_(widened)
                far.append(float((model(ids).last_hidden_state - before).abs().max() / before.abs().max()))
        fw.detach(model)
        assert far[0] <= method.near, method
        if isinstance(method, fw.Houlsby | fw.Pfeiffer | fw.Lin):
            assert far[1] > 10 * far[0], method
        if isinstance(method, fw.Parallel):
            assert far == [0, 0]


def test_starts_are_those_of_the_papers() -> None:
    from transformers import BertConfig, BertModel

    wide = BertModel(BertConfig(num_hidden_layers=1, vocab_size=99))
    tops = {fw.Houlsby: (0.02, 0.0088), fw.Pfeiffer: (None, 0.02), fw.Lin: (0.02, 0.0088)}
    for kind, (cut, std) in tops.items():
        model = fw.attach(copy.deepcopy(wide), kind(), "a")
        mine = {k: t for k, t in state(model, "a").items() if k.endswith(("down.weight", "up.weight"))}
        weights = torch.cat([t.flatten() for t in mine.values()])
        assert abs(float(weights.std()) - std) < 0.02 * std
        assert cut is None or weights.abs().max() <= cut
        assert not any(t.any() for k, t in state(model, "a").items() if k.endswith(("down.bias", "up.bias")))
    model = fw.attach(copy.deepcopy(wide), fw.Parallel(), "a")
    down, up = (next(t for k, t in state(model, "a").items() if k.endswith(e)) for e in ("down.weight", "up.weight"))
    assert not up.any()
    assert 0.99 / 768**0.5 < down.abs().max() <= 1 / 768**0.5  # Kaiming-uniform with a = √5: U(±1/√in)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["bert", "opt"])
def test_dropping_the_first_blocks_is_never_having_put_any_there(kind: Any, arch: str) -> None:
    model = attached(arch, kind(bottleneck=4))
    other = fw.attach(tiny(arch), kind(bottleneck=4, skip=1), "a", head=False)
    kept = state(model, "a")
    with torch.no_grad():
        for k, p in state(other, "a").items():
            p.copy_(kept[k])
        if kind is fw.Houlsby:  # AdapterDrop leaves out adapters, the trained norms stay
            for path, a in adapters(model, "a").items():
                if isinstance(a, Replace) and path not in adapters(other, "a"):
                    for n, p in a.named_parameters():
                        p.copy_(getattr(model.get_submodule(path), n))
    whole = logits(model, inputs(arch))
    fw.drop(model, 1, "a")
    torch.testing.assert_close(logits(model, inputs(arch)), logits(other, inputs(arch)), rtol=0, atol=0)
    fw.drop(model, 0, "a")
    assert torch.equal(logits(model, inputs(arch)), whole)
    pickle.loads(pickle.dumps(copy.deepcopy(fw.drop(model, 1, "a"))))


def resting(model: Any, batch: dict[str, Tensor]) -> int:
    """How many blocks rested in one training step: their parameters have no gradient."""
    model.zero_grad(set_to_none=True)
    model(**batch).logits.square().sum().backward()
    made = [a for a in adapters(model, "a").values() if isinstance(a, Bottleneck)]
    lazy = {a.block for a in made if a.up.bias.grad is None}
    assert not lazy & {a.block for a in made if a.up.bias.grad is not None}
    assert lazy == set(range(len(lazy)))
    return len(lazy)


def test_random_drops_rest_the_first_blocks_in_training_alone() -> None:
    model = attached("t5", fw.Pfeiffer(bottleneck=4, drop=3))
    batch = inputs("t5")
    before = logits(model, batch)
    model.train()
    torch.manual_seed(0)
    first = [resting(model, batch) for _ in range(24)]
    assert set(first) == {0, 1, 2, 3}
    torch.manual_seed(0)
    assert [resting(model, batch) for _ in range(24)] == first
    assert torch.equal(logits(model.eval(), batch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_random_drops_agree_with_gradient_checkpointing(kind: Any) -> None:
    grads = []
    for checkpointing in (False, True):
        model = attached("opt", kind(bottleneck=4, drop=1)).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(resting(model, inputs("opt")))
            found += [p.grad for p in model.parameters() if p.requires_grad]
        grads.append(found)
    assert {n for n in grads[0] if isinstance(n, int)} == {0, 1}
    for a, b in zip(*grads, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        else:
            assert a == b


def test_rows_of_every_kind_equal_each_row_alone() -> None:
    for arch in ("bert", "opt", "gpt2"):
        model = tiny(arch)
        kinds = {k.__name__: k(bottleneck=b) for b, k in enumerate(KINDS, 3)} | {
            "LoRA": fw.LoRA(rank=2),
            "IA3": fw.IA3(),
        }
        for i, (name, method) in enumerate(kinds.items()):
            fw.attach(model, method, name, head=False)
            disturb(model, 0.3, i)
        rows = [*kinds, None, ("Houlsby", "Parallel"), ("Pfeiffer", "LoRA", "Lin")]
        ids = torch.randint(3, 99, (len(rows), 7), generator=torch.Generator().manual_seed(2))
        with fw.switch(model, rows=rows):
            together = logits(model, {"input_ids": ids})
        for i, row in enumerate(rows):
            with fw.switch(model, row):
                alone = logits(model, {"input_ids": ids[i : i + 1]})
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["bert", "gpt2", "bart"])
def test_a_weight_law_on_top_runs_inside(kind: Any, arch: str) -> None:
    """Full fine-tuning stacked over an adapter without a weight law: the adapter sits around the new weights."""
    model = attached(arch, kind(bottleneck=4))
    fw.attach(model, fw.Full(), "b", stack=True, head=False)
    disturb(model, 0.05, 7)
    both = logits(model, inputs(arch))
    tuned = copy.deepcopy(model)
    fw.switch(tuned, "b")
    fw.merge(tuned)
    method = kind(bottleneck=4) if kind is not fw.Houlsby else fw.Houlsby(bottleneck=4, norms=False)
    fw.attach(tuned, method, "a", head=False)
    with torch.no_grad():
        for k, p in state(tuned, "a").items():
            p.copy_(state(model, "a")[k])
    torch.testing.assert_close(logits(tuned, inputs(arch)), both, atol=1e-5, rtol=1e-5)


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = {"reduction": 0, "bottleneck": 0, "activation": "rleu", "dropout": 1.0, "skip": -1}
    for kind in KINDS:
        model = tiny("bert")
        with pytest.raises(fw.InputError) as error:
            fw.attach(model, kind(**bad))
        assert [p.where for p in error.value.problems] == [
            f"method.{k}" for k in ("bottleneck", "reduction", *list(bad)[2:])
        ]
        assert "did you mean 'relu'" in str(error.value)
        for wrong in ({"skip": 2}, {"drop": 2}):
            with pytest.raises(fw.InputError, match="block"):
                fw.attach(model, kind(**wrong))
        assert not [m for m in model.modules() if isinstance(m, Host)]
    for wrong in ({"scale": "learnt"}, {"reads": "all"}):
        with pytest.raises(fw.InputError, match=next(iter(wrong))):
            fw.attach(tiny("bert"), fw.Parallel(**wrong))


def test_models_without_a_place_are_refused() -> None:
    with pytest.raises(fw.InputError, match="no transformer block"):
        fw.attach(nn.Sequential(nn.Linear(4, 4)), fw.Houlsby())
    with pytest.raises(fw.InputError, match=r"could not be run .* Houlsby\(\) and Lin\(\)"):
        fw.attach(tiny("unet"), fw.Pfeiffer())
    with pytest.raises(fw.InputError, match="no bottlenecks"):
        fw.drop(fw.attach(tiny("bert"), fw.LoRA(rank=2)), 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attaching_runs_the_model_without_a_trace(arch: str) -> None:
    """The look at a first block leaves modes, hooks, gradients, switches and chance as they were."""
    model = fw.attach(tiny(arch), fw.Lin(bottleneck=2), "first", head=False).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    places = [p for p, _ in hosts(fw.attach(tiny(arch), fw.Pfeiffer(), head=False))]
    modes = [m.training for m in model.modules()]
    from featherweight.core.places import Plan

    torch.set_rng_state(before)
    assert [p.path for p in Plan(model).sums()] == places  # an adapter that is on does not mislead the look
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for a in adapters(model, "first").values() for p in a.parameters())


def test_activations_have_the_names_of_the_field() -> None:
    x = torch.linspace(-2, 2, 9)
    for name, ours in ACTIVATIONS.items():
        from transformers.activations import ACT2FN

        theirs = F.leaky_relu if name == "leakyrelu" else ACT2FN[name]
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_tap_holds_nothing_between_calls() -> None:
    model = attached("opt", fw.Parallel(bottleneck=4))
    logits(model, inputs("opt"))
    taps = [a.law.__self__ for a in adapters(model, "a").values() if isinstance(a, Inserted)]
    assert taps
    assert not any(t.kept for t in taps)

"""combine: peft's add_weighted_adapter as the judge, and explicit arithmetic of the changes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.state import adapters, state

WEIGHTS = {"fr": 0.7, "law": 0.3}
NEGATIVE = {"fr": 1.2, "law": -0.4}


def two(arch: str = "bert", one: Any = None, other: Any = None, head: bool | str = False) -> nn.Module:
    """A model with two moved adapters, `fr` and `law`."""
    model = tiny(arch)
    for i, (name, method) in enumerate(
        (("fr", one or fw.LoRA(rank=4, alpha=6)), ("law", other or one or fw.LoRA(rank=4, alpha=3)))
    ):
        torch.manual_seed(i)
        fw.attach(model, method, name, head=head)
        disturb(model, seed=i)
    return model


def changes(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Every tensor of the base that the adapter changes -> by how much."""
    base = {k: p.detach().clone() for k, p in model.named_parameters() if "adapters." not in k}
    with fw.switch(model, name), fw.merged(model):
        found = {k: p.detach() - base[k] for k, p in model.named_parameters() if k in base}
    return {k: d for k, d in found.items() if d.abs().max() > 0}


def judged(model: nn.Module, folder: Path, weights: dict[str, float], **options: Any) -> Any:
    """peft's model with both adapters loaded from disk and its own combination of them active."""
    from peft import PeftModel

    fw.save(model, folder / "fr", name="fr")
    fw.save(model, folder / "law", name="law")
    arch = "bert" if hasattr(model, "bert") else "gpt2" if hasattr(model, "transformer") else "llama"
    theirs = PeftModel.from_pretrained(tiny(arch), folder / "fr", adapter_name="fr")
    theirs.load_adapter(folder / "law", adapter_name="law")
    theirs.add_weighted_adapter(list(weights), list(weights.values()), "both", **options)
    theirs.set_adapter("both")
    return theirs.eval()


def factors(theirs: nn.Module, side: str) -> list[Tensor]:
    return [p.detach() for k, p in theirs.named_parameters() if f"lora_{side}.both" in k]


@pytest.mark.parametrize("weights", [WEIGHTS, NEGATIVE], ids=["positive", "negative"])
@pytest.mark.parametrize(
    ("how", "options"),
    [
        (fw.Linear(), {"combination_type": "linear"}),
        (fw.Cat(), {"combination_type": "cat"}),
        (fw.TIES(density=0.4), {"combination_type": "ties", "density": 0.4}),
        (fw.TIES(density=0.4, majority="frequency"),
         {"combination_type": "ties", "density": 0.4, "majority_sign_method": "frequency"}),
        (fw.MagnitudePrune(density=0.3), {"combination_type": "magnitude_prune", "density": 0.3}),
        (fw.DARE(density=0.5, seed=11), {"combination_type": "dare_linear", "density": 0.5}),
        (fw.DARE(density=0.5, seed=11, ties=True), {"combination_type": "dare_ties", "density": 0.5}),
    ],
    ids=["linear", "cat", "ties", "ties-frequency", "prune", "dare", "dare-ties"],
)  # fmt: skip
def test_factors_are_pefts(how: Any, options: dict[str, Any], weights: dict[str, float], tmp_path: Path) -> None:
    model = two("llama")
    fw.combine(model, weights, how, name="both")
    theirs = seeded(model, tmp_path, weights, **options)
    mine = adapters(model, "both").values()
    for a, A, B in zip(mine, factors(theirs, "A"), factors(theirs, "B"), strict=True):
        torch.testing.assert_close(a.A.detach() * a.scale, A, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(a.B.detach(), B, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            logits(model, inputs("llama")), theirs(**inputs("llama")).logits, atol=1e-6, rtol=1e-5
        )


def seeded(model: nn.Module, folder: Path, weights: dict[str, float], **options: Any) -> Any:
    """As `judged`, with the global generator seeded between the making of peft's adapter and its dropping."""
    import peft.tuners.lora.model as module

    real = module._freeze_adapter

    def freeze(*args: Any) -> Any:
        torch.manual_seed(11)
        return real(*args)

    module._freeze_adapter = freeze
    try:
        return judged(model, folder, weights, **options)
    finally:
        module._freeze_adapter = real


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (fw.SVD(rank=3), {"combination_type": "svd", "svd_rank": 3}),
        (fw.SVD(), {"combination_type": "svd"}),
        (fw.TIES(density=0.4, rank=5), {"combination_type": "ties_svd", "density": 0.4, "svd_rank": 5}),
        (fw.MagnitudePrune(density=0.3, rank=5),
         {"combination_type": "magnitude_prune_svd", "density": 0.3, "svd_rank": 5}),
        (fw.DARE(density=0.5, seed=11, rank=6), {"combination_type": "dare_linear_svd", "density": 0.5, "svd_rank": 6}),
        (fw.DARE(density=0.5, seed=11, rank=6, ties=True),
         {"combination_type": "dare_ties_svd", "density": 0.5, "svd_rank": 6}),
    ],
    ids=["svd", "svd-usual", "ties", "prune", "dare", "dare-ties"],
)  # fmt: skip
def test_changes_are_pefts(how: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Sources of unequal ranks; singular vectors are free in sign, so products are compared."""
    model = two("llama", fw.LoRA(rank=4), fw.LoRA(rank=2))
    fw.combine(model, WEIGHTS, how, name="both")
    theirs = seeded(model, tmp_path, WEIGHTS, **options)
    mine = adapters(model, "both").values()
    for a, A, B in zip(mine, factors(theirs, "A"), factors(theirs, "B"), strict=True):
        torch.testing.assert_close(a.delta().detach(), B @ A, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            logits(model, inputs("llama")), theirs(**inputs("llama")).logits, atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2", "neox", "t5"])
@pytest.mark.parametrize("how", [fw.Cat(), fw.SVD(rank=12)], ids=["cat", "svd"])
def test_the_exact_ways_are_the_weighted_sum_of_changes(how: Any, arch: str) -> None:
    """Of unequal ranks and places: attention and embedding here, query and MLP there; slices where they are fused."""
    model = two(
        arch,
        fw.LoRA(rank=4, targets=("query", "embedding"), alpha=3),
        fw.LoRA(rank=2, targets=("query", "value", "up")),
    )
    fw.combine(model, NEGATIVE, how, name="both")
    fr, law, both = (changes(model, n) for n in ("fr", "law", "both"))
    assert set(both) == set(fr) | set(law)
    for key, found in both.items():
        zero = torch.zeros_like(found)
        expected = 1.2 * fr.get(key, zero) - 0.4 * law.get(key, zero)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("arch", ["bert", "gpt2"])
@pytest.mark.parametrize("how", [fw.Linear(), fw.Cat(), fw.TIES(density=0.5)], ids=["linear", "cat", "ties"])
def test_the_result_is_a_plain_adapter(how: Any, arch: str, tmp_path: Path) -> None:
    """It is on and does not train; it saves, loads here and in peft, merges; the sources are as they were."""
    model = two(arch)
    before = {n: {k: t.clone() for k, t in state(model, n).items()} for n in WEIGHTS}
    fw.combine(model, WEIGHTS, how, name="both")
    assert fw.trainable(model).trainable == 0
    out = logits(model, inputs(arch))
    assert all(torch.equal(t, before[n][k]) for n in WEIGHTS for k, t in state(model, n).items())
    fw.save(model, tmp_path, name="both")
    assert torch.equal(logits(fw.load(tiny(arch), tmp_path), inputs(arch)), out)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(tiny(arch), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs(arch)).logits, out, atol=1e-5, rtol=1e-5)
    fw.switch(model, "both", train=True)
    assert fw.trainable(model).trainable > 0
    torch.testing.assert_close(logits(fw.merge(copy.deepcopy(model)), inputs(arch)), out, atol=1e-5, rtol=1e-5)


def test_convolutions() -> None:
    from torch.nn import Conv2d, Flatten, Sequential

    torch.manual_seed(0)
    model = Sequential(Conv2d(3, 6, 3, padding=1), Conv2d(6, 2, 1), Flatten())
    for i, rank in enumerate((2, 1)):
        fw.attach(model, fw.LoRA(rank=rank, targets=["0", "1"]), "ab"[i], head=False)
        disturb(model, seed=i)
    a, b = changes(model, "a"), changes(model, "b")
    for how in (fw.Cat(), fw.SVD(rank=2)):
        x = copy.deepcopy(model)
        if isinstance(how, fw.Cat):  # the ranks add up to more than 1 × 1 with two outputs can have
            with pytest.raises(fw.InputError, match="rank"):
                fw.combine(x, {"a": 0.5, "b": 0.5}, how, name="c")
            assert list(fw.core.switch.switch_of(x).attached) == ["a", "b"]
            continue
        fw.combine(x, {"a": 0.5, "b": 0.5}, how, name="c")
        c = changes(x, "c")
        torch.testing.assert_close(c["1.weight"], 0.5 * a["1.weight"] + 0.5 * b["1.weight"], atol=1e-6, rtol=1e-5)


def test_ia3_linear_is_pefts_and_geometric_adds_logarithms(tmp_path: Path) -> None:
    model = two("llama", fw.IA3())
    fw.combine(model, WEIGHTS, name="both")
    theirs = judged(model, tmp_path, WEIGHTS)
    with torch.no_grad():
        torch.testing.assert_close(
            logits(model, inputs("llama")), theirs(**inputs("llama")).logits, atol=1e-6, rtol=1e-5
        )
    fw.combine(model, {"fr": 2.0, "law": -1.0}, fw.Geometric(), name="log")
    one, other, both = (state(model, n) for n in ("fr", "law", "log"))
    for key, l in both.items():
        torch.testing.assert_close(l, one[key] ** 2 / other[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", [fw.BitFit(), fw.LayerNorm(), fw.Full(), fw.BitFit(targets=("query", "up"))])
@pytest.mark.parametrize("arch", ["bert", "gpt2"])
def test_replacements_add_differences_from_the_base(method: Any, arch: str) -> None:
    model = two(arch, method)
    fw.combine(model, NEGATIVE, name="both")
    fr, law, both = (changes(model, n) for n in ("fr", "law", "both"))
    for key, found in both.items():
        torch.testing.assert_close(found, 1.2 * fr[key] - 0.4 * law[key], atol=1e-5, rtol=1e-4)


def test_task_heads_are_mixed_too(tmp_path: Path) -> None:
    model = two("bert", head=True)
    fw.combine(model, WEIGHTS, fw.Cat(), name="both")
    fr, law, both = (changes(model, n) for n in ("fr", "law", "both"))
    torch.testing.assert_close(
        both["classifier.weight"], 0.7 * fr["classifier.weight"] + 0.3 * law["classifier.weight"]
    )
    fw.save(model, tmp_path, name="both")
    assert torch.equal(logits(fw.load(tiny("bert"), tmp_path), inputs("bert")), logits(model, inputs("bert")))


def test_one_adapter_with_weight_one_is_itself() -> None:
    model = two("llama")
    with fw.switch(model, "fr"):
        before = logits(model, inputs("llama"))
    for i, how in enumerate((fw.Linear(), fw.Cat(), fw.SVD())):
        fw.combine(model, {"fr": 1.0}, how, name=f"copy{i}")
        torch.testing.assert_close(logits(model, inputs("llama")), before, atol=1e-6, rtol=1e-5)


def test_any_change_of_weights_becomes_a_lora() -> None:
    """A scale on values, which multiplies rows, beside a LoRA: at full rank the sum of the two changes."""
    model = two("llama", fw.LoRA(rank=4, targets=("query", "value")), fw.IA3())
    fw.combine(model, {"fr": 0.5, "law": 2.0}, fw.SVD(rank=99), name="both")
    fr, law, both = (changes(model, n) for n in ("fr", "law", "both"))
    assert set(both) == set(fr) | set(law)
    for key, found in both.items():
        expected = 0.5 * fr.get(key, torch.zeros_like(found)) + 2 * law.get(key, torch.zeros_like(found))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_dare_keeps_the_expected_change() -> None:
    model = two("llama")
    fr = changes(model, "fr")
    total = {k: torch.zeros_like(d) for k, d in fr.items()}
    for seed in range(60):
        fw.combine(model, {"fr": 1.0}, fw.DARE(density=0.5, seed=seed, rank=16), name="thin")
        total = {k: t + changes(model, "thin")[k] / 60 for k, t in total.items()}
        fw.detach(model, "thin")
        fw.switch(model, "fr")
    for key, mean in total.items():
        assert (mean - fr[key]).norm() < 0.3 * fr[key].norm()


@pytest.mark.parametrize(
    ("weights", "how", "word"),
    [
        ({}, None, "which adapters"), (["fr", "law"], None, "which adapters"),
        ({"fr": 1, "lwa": 1}, None, "did you mean"),
        ({"fr": float("nan")}, None, "finite"), ({"fr": True}, None, "finite"), (WEIGHTS, "linear", "not a way"),
        (WEIGHTS, fw.TIES(density=0), "density"), (WEIGHTS, fw.TIES(majority="most"), "majority"),
        (WEIGHTS, fw.SVD(rank=0), "rank"), (WEIGHTS, fw.Geometric(), "Geometric"), (WEIGHTS, fw.Linear(), "Cat"),
    ],
)  # fmt: skip
def test_bad_input_changes_nothing(weights: Any, how: Any, word: str) -> None:
    model = two("llama", fw.LoRA(rank=4), fw.LoRA(rank=2))
    before = logits(model, inputs("llama"))
    with pytest.raises(fw.InputError, match=word):
        fw.combine(model, weights, how, name="both")
    assert torch.equal(logits(model, inputs("llama")), before)
    assert not [k for k in model.state_dict() if ".adapters.both" in k]


def test_what_does_not_go_together_says_so() -> None:
    with pytest.raises(fw.InputError, match="different methods"):
        fw.combine(two("bert", fw.BitFit(), fw.LayerNorm()), WEIGHTS)
    with pytest.raises(fw.InputError, match=r"not a plain LoRA.*|LowRank"):
        fw.combine(two("bert", fw.LoRA(rank=4), fw.Houlsby(bottleneck=4)), WEIGHTS)
    with pytest.raises(fw.InputError, match="scales"):
        fw.combine(two("llama", fw.IA3()), WEIGHTS, fw.TIES())
    with pytest.raises(fw.InputError, match="weights alone"):
        fw.combine(two("bert", fw.LoRA(rank=4), fw.IA3()), WEIGHTS, fw.SVD(rank=4))
    model = two("llama", fw.IA3())
    for host in adapters(model, "fr").values():
        host.ia3_l.data.neg_()
    with pytest.raises(fw.InputError, match="logarithm"):
        fw.combine(model, WEIGHTS, fw.Geometric())
    with pytest.raises(fw.InputError, match="slices"):
        fw.combine(two("gpt2", fw.LoRA(rank=4, targets="query"), fw.LoRA(rank=4, targets="c_attn")), WEIGHTS, fw.Cat())

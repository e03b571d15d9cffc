"""Where LoRA starts: from the weight, from data, orthonormal; peft and hand-worked equations as judges."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.host import Host
from featherweight.core.state import adapters, state
from featherweight.core.switch import switch_of
from featherweight.methods.starts.spectrum import Spectrum

pytestmark = pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage:UserWarning")


def one(layer: nn.Module, method: fw.LoRA) -> Any:
    fw.attach(nn.Sequential(layer), method)
    return layer.adapters["default"]


def places(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(6, 5), torch.randn(4, 6)),
        "conv": (nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)),
        "embedding": (nn.Embedding(9, 6), torch.tensor([[1, 2, 8]])),
    }[kind]


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_base_stays_and_the_start_is_the_identity(init: str, kind: str) -> None:
    """Bit for bit, in the output and merged, although neither factor is 0; half way to nowhere once it moves."""
    layer, x = places(kind)
    before, W = layer(x), layer.weight.detach().clone()
    adapter = one(layer, fw.LoRA(rank=3, alpha=5, init=init, targets="0"))
    assert torch.equal(layer(x), before)
    assert torch.equal(adapter.merge({"weight": W})["weight"], W)
    assert torch.equal(layer.weight, W)
    assert min(adapter.A.norm(), adapter.B.norm()) > 0.1
    with torch.no_grad():
        adapter.A.add_(0.1)
    wanted = W + adapter.shaped(adapter.scale * (adapter.B.flatten(1) @ (adapter.A - adapter.origin_A).flatten(1)), W)
    torch.testing.assert_close(adapter.merge({"weight": W})["weight"], wanted, atol=1e-6, rtol=1e-6)
    assert (layer(x) - before).abs().max() > 1e-2


def test_pissa_takes_the_principal_part() -> None:
    """W = diag(9, 4, 1), s = 4: B A = diag(9, 4, 0)/4, split evenly between the two."""
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.diag(torch.tensor([9.0, 4.0, 1.0]))
    adapter = one(layer, fw.LoRA(rank=2, alpha=8, init="pissa", targets="0"))
    torch.testing.assert_close(adapter.B @ adapter.A, torch.diag(torch.tensor([2.25, 1.0, 0.0])))
    torch.testing.assert_close(adapter.A.norm(dim=1), torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(adapter.B.norm(dim=0), torch.tensor([1.5, 1.0]))


def test_olora_takes_an_orthonormal_basis() -> None:
    layer, _ = places("linear")
    adapter = one(layer, fw.LoRA(rank=3, init="olora", targets="0"))
    torch.testing.assert_close(adapter.B.T @ adapter.B, torch.eye(3))
    Q, R = torch.linalg.qr(layer.weight)
    torch.testing.assert_close(adapter.B @ adapter.A, Q[:, :3] @ R[:3])


def test_a_start_from_the_weight_of_a_16_bit_base() -> None:
    layer = nn.Linear(16, 16).to(torch.bfloat16)
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    before = layer(x)
    adapter = one(layer, fw.LoRA(rank=4, init="pissa", targets="0"))
    assert adapter.A.dtype == torch.float32
    assert torch.equal(layer(x), before)


def test_what_is_not_to_be_had_is_said() -> None:
    with pytest.raises(fw.InputError, match=r"unknown init.*kaiming or gaussian or.*'psisa'"):
        fw.attach(tiny("llama"), fw.LoRA(init="psisa"))
    with pytest.raises(fw.InputError, match=r"embed_tokens: method.init: an init that is not to be had here; got eva"):
        fw.attach(tiny("llama"), fw.LoRA(init="eva", targets=("query", "embedding")))
    with pytest.raises(fw.InputError, match="pissa divides by the scale; expected alpha > 0; got 0"):
        fw.attach(tiny("llama"), fw.LoRA(init="pissa", alpha=0))
    with pytest.raises(fw.InputError, match="starts at 0: frozen, it never learns"):
        fw.attach(tiny("llama"), fw.LoRA(freeze_A=True, targets="embedding"))
    with pytest.raises(fw.InputError, match=r"method.lr_ratio: rate of B out of range"):
        fw.attach(tiny("llama"), fw.LoRA(lr_ratio=0))


@pytest.mark.parametrize("tall", [False, True])
def test_the_full_rank_limit_follows_full_fine_tuning(tall: bool) -> None:
    """A frozen and orthonormal, r = in, s = 1, plain SGD: the same weight after each of ten steps."""
    torch.manual_seed(1)
    out = 12 if tall else 8
    first, second = nn.Linear(8, out), nn.Linear(out, 4)
    full = nn.Sequential(first, nn.Tanh(), second)
    low = nn.Sequential(nn.Linear(8, out), nn.Tanh(), nn.Linear(out, 4))
    low.load_state_dict(full.state_dict())
    for p in (*second.parameters(), first.bias):
        p.requires_grad_(False)
    fw.attach(low, fw.LoRA(rank=8, alpha=8, init="orthogonal", freeze_A=True, targets="0"), head=False)
    adapter = low[0].adapters["default"]
    torch.testing.assert_close(adapter.A @ adapter.A.T, torch.eye(8))
    start = first.weight.detach().clone()
    steps = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5) for m in (full, low)]
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    for _ in range(10):
        for model, optimizer in zip((full, low), steps, strict=True):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        merged = adapter.merge({"weight": low[0].weight})["weight"]
        assert (merged - first.weight).abs().max() <= 1e-5
    assert (first.weight - start).abs().max() > 0.05


def test_elsewhere_it_does_not() -> None:
    """With A trained along, or of half the rank, ten steps lead elsewhere."""
    for method in (
        fw.LoRA(rank=8, alpha=8, init="orthogonal", targets="0"),
        fw.LoRA(rank=4, alpha=4, init="orthogonal", freeze_A=True, targets="0"),
    ):
        torch.manual_seed(1)
        full, low = nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Sequential(nn.Linear(8, 8, bias=False))
        low.load_state_dict(full.state_dict())
        fw.attach(low, method, head=False)
        x, y = torch.randn(32, 8), torch.randn(32, 8)
        for model in (full, low):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
            for _ in range(10):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
        merged = low[0].adapters["default"].merge({"weight": low[0].weight})["weight"]
        assert (merged - full[0].weight).abs().max() > 1e-2


def test_the_stream_of_a_spectrum_is_that_of_all_rows() -> None:
    """Batch by batch, with no direction cut off, as one decomposition of all rows."""
    torch.manual_seed(0)
    X = torch.randn(60, 6) @ torch.diag(torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])) + 4
    stream = Spectrum(6)
    for batch in X.split(20):
        stream.add(batch)
    _, S, V = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    torch.testing.assert_close(stream.values, S, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((stream.vectors @ V.T).abs(), torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(stream.shares, S.square() / S.square().sum(), atol=1e-4, rtol=1e-3)
    assert stream.settled(1)


def batches(arch: str, count: int = 3, rows: int = 6, length: int = 12) -> list[dict[str, Tensor]]:
    """Batches with padding on the right."""
    draw = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 99, (rows, length), generator=draw)
        mask = (torch.arange(length) < torch.randint(6, length + 1, (rows, 1), generator=draw)).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask})
    return found


ROLES = {"q_proj": "query", "v_proj": "value", "o_proj": "output", "down_proj": "down"}


def eva_by_peft(rank: int, names: list[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A by path, and the scales."""
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=names, init_lora_weights="eva", eva_config=EvaConfig()
    )
    theirs = get_peft_model(tiny("llama"), config)
    initialize_lora_eva_weights(theirs, batches("llama"), show_progress_bar=False)
    low = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    return {n: m.lora_A["default"].weight.detach() for n, m in low.items()}, {
        n: m.scaling["default"] for n, m in low.items()
    }


def test_eva_finds_pefts_directions_and_ranks() -> None:
    names = list(ROLES)
    theirs, scales = eva_by_peft(4, names)
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, init="eva", targets=tuple(ROLES.values())), head=False)
    fw.prepare(model, batches("llama"))
    ours = adapters(model, "default")
    ranks, peers = {p: a.A.shape[0] for p, a in ours.items()}, {p: A.shape[0] for p, A in theirs.items()}
    assert sum(ranks.values()) == sum(peers.values()) == 4 * 8
    assert len(set(ranks.values())) > 1
    assert max(ranks.values()) <= 8
    shared = ("q_proj", "v_proj")  # of layers that read the same input peft gives the first more, and so do we
    assert {p: r for p, r in ranks.items() if not p.endswith(shared)} == {
        p: r for p, r in peers.items() if not p.endswith(shared)
    }
    for layer in range(2):
        pair = [f"model.layers.{layer}.self_attn.{n}" for n in shared]
        assert sorted(ranks.get(p, 0) for p in pair) == sorted(peers.get(p, 0) for p in pair)
    for path, A in theirs.items():
        mine, k = ours[path].A, min(len(A), ranks[path])
        torch.testing.assert_close((mine[:k] * A[:k]).sum(1).abs(), torch.ones(k), atol=1e-3, rtol=0)
        torch.testing.assert_close(mine @ mine.T, torch.eye(len(mine)), atol=1e-5, rtol=0)
        assert ours[path].scale == scales[path] == 2.0
        assert not ours[path].B.any()


def test_eva_goes_on_record_and_comes_back(tmp_path: Path) -> None:
    """Ranks, scales and places without any: saved, loaded, read by peft."""
    from peft import PeftModel

    method = fw.LoRA(rank=1, alpha=3, init="eva", targets="linear", rank_stabilized=True)
    model = fw.attach(tiny("llama"), method, head=False)
    scale = next(iter(adapters(model, "default").values())).scale
    fw.prepare(model, batches("llama"))
    there = adapters(model, "default")
    assert 0 < len(there) < 14
    assert sum(a.A.shape[0] for a in there.values()) == 14
    assert {a.scale for a in there.values()} == {scale}
    assert all(p.requires_grad for a in there.values() for p in a.parameters())
    assert sum(isinstance(m, Host) for m in model.modules()) == len(there)
    assert torch.equal(logits(model, inputs("llama")), logits(tiny("llama"), inputs("llama")))
    disturb(model)
    fw.save(model, tmp_path)
    again = fw.load(tiny("llama"), tmp_path)
    ours, back = state(model, "default"), state(again, "default")
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in back.items()}
    assert torch.equal(logits(again, inputs("llama")), logits(model, inputs("llama")))
    theirs = PeftModel.from_pretrained(tiny("llama"), str(tmp_path)).eval()
    assert (logits(theirs, inputs("llama")) - logits(model, inputs("llama"))).abs().max() <= 1e-6
    fitted = switch_of(model).attached["default"].method
    assert fw.LoRA.from_dict(fitted.to_dict()) == fitted
    optimizer = torch.optim.SGD([p for g in fitted.groups(there, 0.1) for p in g["params"]], lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 2 * len(there)


def test_eva_on_slices_and_leaves_trained_adapters_alone() -> None:
    model = fw.attach(tiny("gpt2"), fw.LoRA(rank=3, init="eva", targets=("attention", "up")), head=False)
    fw.prepare(model, batches("gpt2"))
    ranks = [t.shape[0] for k, t in state(model, "default").items() if k.endswith("lora_A.weight")]
    assert sum(ranks) == 3 * 2 * 5
    assert torch.equal(logits(model, inputs("gpt2")), logits(tiny("gpt2"), inputs("gpt2")))
    disturb(model)
    before = {k: t.clone() for k, t in state(model, "default").items()}
    fw.prepare(model, batches("gpt2", count=1))
    after = state(model, "default")
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_eva_of_dora_and_of_an_encoder_decoder() -> None:
    model = fw.attach(tiny("llama"), fw.DoRA(rank=2, init="eva"), head=False)
    fw.prepare(model, batches("llama"))
    assert torch.equal(logits(model, inputs("llama")), logits(tiny("llama"), inputs("llama")))
    model = fw.attach(tiny("t5"), fw.LoRA(rank=2, init="eva"), head=False)
    fw.prepare(
        model, [b | {"labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in batches("t5")]
    )
    assert sum(a.A.shape[0] for a in adapters(model, "default").values()) == 2 * 12


def test_eva_says_what_it_lacks() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=8, init="eva"), head=False)
    with pytest.raises(fw.InputError, match=r"fewer tokens in every batch than directions; got model.layers.0"):
        fw.prepare(model, batches("llama", rows=1, length=8))
    with pytest.raises(fw.InputError, match="no batch to start from"):
        fw.prepare(model, [])


def test_eva_leaves_padding_and_untrained_tokens_out() -> None:
    """Other tokens where nobody looks: the same directions."""
    found = []
    for fill in (0, 50):
        given = batches("llama")
        for b in given:
            b["input_ids"] = torch.where(b["attention_mask"].bool(), b["input_ids"], fill)
        model = fw.attach(tiny("llama"), fw.LoRA(rank=2, init="eva"), head=False)
        fw.prepare(model, given)
        found.append({k: t.clone() for k, t in state(model, "default").items()})
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-4) for k in found[0])

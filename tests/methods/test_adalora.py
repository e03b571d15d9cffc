"""AdaLoRA: the allocation by hand and against peft's own allocator, the schedule, resuming."""

import copy
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.core.state import adapters, load_state, state
from featherweight.methods.triplets import FACTORS, Triplets, triplets

STEPS = 24
METHOD = fw.AdaLoRA(rank=6, target_rank=3, alpha=9, targets=("query", "up"), start=3, final=6, every=2)


def peer(model: Any, method: fw.AdaLoRA, total: int) -> Any:
    """The same adapter in peft, with the tensors of ours."""
    from peft import AdaLoraConfig, get_peft_model

    made = triplets(adapters(model, "default"))
    config = AdaLoraConfig(
        init_r=method.rank, target_r=method.target_rank, lora_alpha=method.alpha, total_step=total,
        tinit=int(method.start), tfinal=int(method.final), deltaT=int(method.every),
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = get_peft_model(tiny("llama"), config)
    layers = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for path, t in made.items():
            for name in FACTORS:
                getattr(layers[path], name)["default"].copy_(getattr(t, name))
    return theirs, {path: layers[path] for path in made}


def test_ranks_scores_and_penalty_are_pefts_at_every_step() -> None:
    """24 steps of SGD on the same tensors: the same mask at each, in warm-up, allocation and final phase."""
    torch.manual_seed(0)
    model = fw.attach(tiny("llama"), METHOD)
    made = triplets(adapters(model, "default"))
    theirs, layers = peer(model, METHOD, STEPS)
    assert fw.trainable(model).trainable == theirs.get_nb_trainable_parameters()[0]
    mine, yours = (
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5),
        torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], 0.5),
    )
    seen = set()
    for step in range(1, STEPS + 1):
        batch = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(step))
        penalty = METHOD.penalty(adapters(model, "default"))
        assert penalty is not None
        loss = model(input_ids=batch, labels=batch).loss + penalty
        wanted = theirs(input_ids=batch, labels=batch).loss
        torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
        loss.backward()
        wanted.backward()
        mine.step()
        yours.step()
        METHOD.after_step(adapters(model, "default"), step, STEPS)
        theirs.base_model.update_and_allocate(step)
        for path, t in made.items():
            E = layers[path].lora_E["default"]
            assert torch.equal(t.lora_E == 0, E == 0), (step, path)
            torch.testing.assert_close(t.lora_E.detach(), E.detach(), atol=1e-6, rtol=1e-4)
        seen.add(sum(int((t.lora_E != 0).sum()) for t in made.values()))
        mine.zero_grad()
        yours.zero_grad()
    assert len(seen) > 4, "ranks went down step by step"
    assert sum(int(t.kept.sum()) for t in made.values()) == 3 * len(made)
    assert len({int(t.kept.sum()) for t in made.values()}) > 1, "and went where they matter"
    batch = inputs("llama")
    torch.testing.assert_close(logits(model, batch), logits(theirs, batch), atol=1e-6, rtol=1e-6)


def test_one_allocation_by_hand() -> None:
    """One matrix, two triplets, one step with β = 1/2 from nothing: Ī = I/2, Ū = |I − I/2|/2 = I/4, S = I²/8."""
    layer = torch.nn.Linear(2, 2, bias=False)
    method = fw.AdaLoRA(rank=2, target_rank=1, targets="0", start=0, final=0, every=1, betas=(0.5, 0.5))
    fw.attach(torch.nn.Sequential(layer), method)
    t: Any = layer.adapters["default"]  # type: ignore[union-attr]
    values = {"lora_A": [[1.0, 2.0], [3.0, 4.0]], "lora_B": [[1.0, 1.0], [2.0, 1.0]], "lora_E": [[2.0], [1.0]]}
    for name, value in values.items():
        getattr(t, name).data = torch.tensor(value)
        getattr(t, name).grad = torch.ones_like(getattr(t, name))
    t.observe(0.5, 0.5)
    scores = t.scores()
    # I = |w|: e 4 and 1; rows of A mean(1, 4) and mean(9, 16); columns of B mean(1, 4) and mean(1, 1); all over 8
    assert torch.allclose(scores, torch.tensor([4 + 2.5 + 2.5, 1 + 12.5 + 1]) / 8)
    method.after_step({"0": t}, 1, 2)
    assert t.kept.tolist() == [False, True]
    assert t.lora_E.view(-1).tolist() == [0.0, 1.0]


def test_the_budget_falls_cubically() -> None:
    method = fw.AdaLoRA(rank=12, target_rank=8)
    assert [method.budget(10, u) for u in (0, 0.25, 0.5, 1)] == [120, 96, 85, 80]
    assert fw.AdaLoRA(start=0.1, final=0.5, every=0.001).schedule(1000) == (100, 500, 1)
    assert fw.AdaLoRA(start=20, final=0.25, every=10).schedule(200) == (20, 50, 10)


def test_by_hand_and_merged() -> None:
    """W = 0, Q = [1 2], e = 3, P = [4; 5], s = 2/(1 + 1e-5): h = s · P · 3 · (1·5 + 2·6) = s [204; 255]."""
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(layer.weight)
    model = fw.attach(torch.nn.Sequential(layer), fw.AdaLoRA(rank=1, target_rank=1, alpha=2, targets="0"))
    t: Any = layer.adapters["default"]  # type: ignore[union-attr]
    t.lora_A.data, t.lora_B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0], [5.0]])
    t.lora_E.data.fill_(3)
    x, wanted = torch.tensor([5.0, 6.0]), torch.tensor([204.0, 255.0]) * 2 / 1.00001
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(fw.merge(model)(x), wanted)


def trained(model: Any, first: int, last: int) -> None:
    """Steps of SGD without momentum."""
    method, made = METHOD, adapters(model, "default")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    for step in range(first, last + 1):
        batch = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(step))
        penalty = method.penalty(made)
        (model(input_ids=batch, labels=batch).loss + penalty).backward()
        optimizer.step()
        method.after_step(made, step, STEPS)
        optimizer.zero_grad()


@pytest.mark.parametrize("at", [2, 7, 20])
def test_resumes_exactly(at: int) -> None:
    """Stopped in each of the three phases and gone on with from its state alone: the same bits as never stopped."""
    torch.manual_seed(0)
    whole = fw.attach(tiny("llama"), METHOD)
    start = copy.deepcopy(state(whole, "default"))
    trained(whole, 1, STEPS)
    first = fw.attach(tiny("llama"), METHOD)
    load_state(first, "default", start)
    trained(first, 1, at)
    second = fw.attach(tiny("llama"), METHOD)
    load_state(second, "default", state(first, "default"))
    trained(second, at + 1, STEPS)
    wanted, got = state(whole, "default"), state(second, "default")
    assert list(wanted) == list(got)
    assert all(torch.equal(wanted[k], got[k]) for k in wanted)


def test_slices_and_heads() -> None:
    """The query rows of GPT-2's fused projection and a Conv1D are matrices of their own; a head is left alone."""
    model = fw.attach(tiny("gpt2", task="classify"), fw.AdaLoRA(rank=4, target_rank=2, targets=("query", "down")))
    made = triplets(adapters(model, "default"))
    assert sorted(made) == [f"transformer.h.{i}.{p}" for i in (0, 1) for p in ("attn.c_attn[query]", "mlp.c_proj")]
    disturb(model)
    for t in made.values():
        for name in FACTORS:
            getattr(t, name).grad = torch.randn(getattr(t, name).shape)
    method = fw.AdaLoRA(rank=4, target_rank=2, start=0, final=0, every=1)
    for step in (1, 2):
        method.after_step(adapters(model, "default"), step, 2)
    assert sum(int(t.kept.sum()) for t in made.values()) == 8


def test_a_step_that_overflowed_says_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    fw.attach(torch.nn.Sequential(layer), fw.AdaLoRA(rank=2, target_rank=1, targets="0"))
    t: Any = layer.adapters["default"]  # type: ignore[union-attr]
    assert isinstance(t, Triplets)
    t.lora_A.grad = torch.full_like(t.lora_A, float("inf"))
    t.observe(0.85, 0.85)
    assert not t.sensitivity_A.any()


@pytest.mark.parametrize(("method", "says"), [
    (fw.AdaLoRA(rank=4), r"method\.target_rank: out of range; expected 1 to rank=4; got 8"),
    (fw.AdaLoRA(rank=20, target_rank=2), r"k_proj: method\.rank|rank out of range; expected 1 to 16"),
    (fw.AdaLoRA(rank_pattern={"model.layers.1.mlp.up_proj": [True, False]}), r"up_proj: .*expected 12 entries; got 2"),
    (fw.AdaLoRA(start=0.6, final=0.5), r"method\.start: out of range"),
    (fw.AdaLoRA(betas=(0.9, 1.0), dropout=1.5), r"(?s)dropout: out of range.*betas: out of range"),
])  # fmt: skip
def test_bad_input(method: fw.AdaLoRA, says: str) -> None:
    with pytest.raises(fw.InputError, match=says):
        fw.attach(tiny("llama"), method)


def test_a_run_too_short_for_its_schedule() -> None:
    with pytest.raises(fw.InputError, match=r"no step is left to prune in; expected start \+ final below 9 steps"):
        METHOD.after_step({}, 1, 9)
    with pytest.raises(fw.InputError, match="no step is left"):
        fw.AdaLoRA(start=0, final=0).after_step({}, 1, 1)

"""A task's head may train at a rate of its own, under any method; everything else keeps the method's."""

import pytest

import featherweight as fw
from featherweight.core import state as core
from featherweight.train import optimizers
from featherweight.train import run as verb

METHODS = [fw.LoRA(rank=2, lr_ratio=16.0), fw.VeRA(rank=4), fw.IA3(), fw.BitFit(), fw.Full(), fw.Houlsby(reduction=8)]


def groups(model, method, lr, head_lr):
    """Name of each trained tensor -> its rate."""
    adapters = core.adapters(model, "default")
    rates = optimizers.head_rates(model, [(method, adapters)], head_lr)
    made = optimizers.optimizer("sgd", [(method, adapters)], lr, 0.0, heads=rates)
    found = {id(p): group["peak"] for group in made.param_groups for p in group["params"]}
    assert sum(len(g["params"]) for g in made.param_groups) == len(found)
    return {n: found[id(p)] for n, p in model.named_parameters() if id(p) in found}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_head_and_nothing_else_has_its_rate(make, method):
    model = fw.attach(make("bert"), method)
    usual, own = groups(model, method, 1e-3, None), groups(model, method, 1e-3, 0.5)
    heads = {n for n in own if "classifier" in n}
    assert heads
    assert {own[n] for n in heads} == {0.5}
    assert set(own) == set(usual)
    assert {n: r for n, r in own.items() if n not in heads} == {n: r for n, r in usual.items() if n not in heads}


def test_a_run_moves_the_head_alone_by_its_rate(make, tokenizer, class_rows):
    """One step of AdamW moves each weight by its rate: the head's ends at ten times the distance."""
    ends = []
    for head_lr in (None, 1e-2):
        model = make("bert")
        start = model.classifier.weight.detach().clone()
        verb.train(model, class_rows, method=fw.LoRA(rank=2), tokenizer=tokenizer, steps=1, batch=8, warmup=0, lr=1e-3,
                   clip=None, head_lr=head_lr, schedule="constant")  # fmt: skip
        held = core.state(model, "default")
        low = {n: t.clone() for n, t in held.items() if "lora_" in n}
        ends.append((low, next(t for n, t in held.items() if n.endswith("classifier.weight")) - start))
    (low, moved), (low_own, moved_own) = ends
    assert all((low[n] == low_own[n]).all() for n in low)
    assert float(moved_own.abs().median() / moved.abs().median()) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_where_no_task_head_trains_it_is_an_error(make, kind):
    method = fw.LoRA(rank=2)
    model = fw.attach(make(kind), method, head=False)
    with pytest.raises(fw.InputError, match="head_lr: no task head is trained"):
        groups(model, method, 1e-3, 1e-2)


def test_a_language_model_head_is_none(make):
    method = fw.Full()
    model = fw.attach(make("llama"), method)
    with pytest.raises(fw.InputError, match="head_lr: no task head is trained"):
        groups(model, method, 1e-3, 1e-2)

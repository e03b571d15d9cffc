"""Bit-exact resumption: an interrupted run and an uninterrupted one end with equal bits, on the CPU."""

import json

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.train import run as verb
from featherweight.train.loop import Loop
from featherweight.train.store import CheckpointError

HARD = {"optimizer": "adamw", "schedule": "cosine", "accumulate": 2, "batch": 8, "steps": 12, "lr": 1e-2, "decay": 0.01,
        "log": 3, "eval_every": 5, "checkpoint_every": 1, "keep": 2, "seed": 3}  # fmt: skip


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures are tested elsewhere."""
    monkeypatch.setattr(verb, "curve", lambda *_: [])


class Cut(Exception):
    """The power went off."""


@pytest.fixture
def train(make, tokenizer, lm_rows, split):
    """train(output, **settings) of LoRA with dropout on a fresh tiny Llama; 40 rows, so an epoch has 5 steps of 8."""

    def start(output, resume=False, rows=lm_rows, method=None, model=None, **values):
        method = method or fw.LoRA(rank=4, dropout=0.1, targets="linear")
        return verb.train(model or make("llama"), split(rows, 8), output=output, method=method, tokenizer=tokenizer,
                          resume=resume, **{**HARD, **values})  # fmt: skip

    return start


@pytest.fixture
def cut(monkeypatch):
    """cut(k): the next run dies at the start of step k + 1, or (evaluating=True) in the evaluation after step k."""

    def arm(step, evaluating=False):
        name = "evaluate" if evaluating else "advance"
        real = getattr(Loop, name)

        def dying(self, *given):
            if self.progress.step == step:
                monkeypatch.setattr(Loop, name, real)
                raise Cut
            return real(self, *given)

        monkeypatch.setattr(Loop, name, dying)

    return arm


def history(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def equal(a, b):
    found = [{p.name: load_file(p) for p in sorted((f / "checkpoints/step-12").glob("*.safetensors"))} for f in (a, b)]
    assert sorted(found[0]) == ["adapter.safetensors", "optimizer.safetensors"]
    for name, tensors in found[0].items():
        assert sorted(tensors) == sorted(found[1][name])
        assert all(torch.equal(t, found[1][name][k]) for k, t in tensors.items()), name
    for name in ("adapter_model.safetensors",):
        top = [load_file(f / name) for f in (a, b)]
        assert all(torch.equal(t, top[1][k]) for k, t in top[0].items())
    assert history(a) == history(b)
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, made once per precision and optimizer."""
    return {}, tmp_path_factory


def uninterrupted(whole, train, **values):
    runs, factory = whole
    key = json.dumps(values)
    if key not in runs:
        runs[key] = factory.mktemp("whole")
        train(runs[key], **values)
    return runs[key]


@pytest.mark.parametrize("step", [1, 4, 5, 11])
def test_a_run_cut_at_any_step_ends_with_the_same_bits(train, cut, whole, tmp_path, capsys, step):
    expected = uninterrupted(whole, train)
    cut(step)
    with pytest.raises(Cut):
        train(tmp_path)
    train(tmp_path, resume=True)
    assert f"going on after step {step}" in capsys.readouterr().err
    assert equal(tmp_path, expected)


def test_a_run_cut_in_an_evaluation_makes_it_again(train, cut, whole, tmp_path):
    expected = uninterrupted(whole, train)
    cut(5, evaluating=True)
    with pytest.raises(Cut):
        train(tmp_path)
    train(tmp_path, resume=True)
    assert equal(tmp_path, expected)


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "bf16"},
        {"optimizer": "adafactor"},
        {"optimizer": "sgd", "packing": True, "length": 24},
        {"checkpointing": True},
    ],
    ids=["bf16", "adafactor", "sgd-packed", "recomputed"],
)
def test_precisions_optimizers_and_packing_resume_bit_exactly(train, cut, whole, tmp_path, values):
    expected = uninterrupted(whole, train, **values)
    cut(4)
    with pytest.raises(Cut):
        train(tmp_path, **values)
    train(tmp_path, resume=True, **values)
    assert equal(tmp_path, expected)


def test_a_finished_run_resumes_to_itself(train, whole, tmp_path):
    expected = uninterrupted(whole, train)
    train(tmp_path)
    train(tmp_path, resume=True)
    assert equal(tmp_path, expected)


def test_without_a_checkpoint_it_starts_over_and_says_so(train, cut, whole, tmp_path, capsys):
    expected = uninterrupted(whole, train)
    cut(0)
    with pytest.raises(Cut):
        train(tmp_path)
    train(tmp_path, resume=True)
    assert "no checkpoint yet: starting over" in capsys.readouterr().err
    assert equal(tmp_path, expected)


def test_a_damaged_checkpoint_is_passed_over_and_named(train, cut, whole, tmp_path, capsys):
    expected = uninterrupted(whole, train)
    cut(7)
    with pytest.raises(Cut):
        train(tmp_path)
    newest = tmp_path / "checkpoints/step-7/optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    train(tmp_path, resume=True)
    told = capsys.readouterr().err
    assert "damaged checkpoint passed over" in told
    assert "step-7" in told
    assert "going on after step 6" in told
    assert equal(tmp_path, expected)


def test_everything_that_changed_is_listed(train, cut, tmp_path, lm_rows):
    cut(3)
    with pytest.raises(Cut):
        train(tmp_path)
    other = [{**lm_rows[0], "completion": "dull"}, *lm_rows[1:]]
    with pytest.raises(fw.InputError) as caught:
        train(tmp_path, resume=True, seed=4, batch=4, rows=other, method=fw.LoRA(rank=2, dropout=0.1, targets="linear"))
    told = str(caught.value)
    for key, then, now in [
        ("settings.seed", "3", "4"),
        ("settings.batch", "8", "4"),
        ("method.default.rank", "4", "2"),
    ]:
        assert f"{key}: changed since the run began; expected {then}; got {now}" in told
    assert "data: changed since the run began" in told
    assert len(caught.value.problems) == 4


def test_another_base_is_named(train, cut, tmp_path, make):
    other = make("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 1e-3
    cut(3)
    with pytest.raises(Cut):
        train(tmp_path)
    with pytest.raises(fw.InputError, match=r"^base: changed since the run began; expected .LlamaForCausalLM"):
        train(tmp_path, resume=True, model=other)


def test_checkpoints_all_damaged_are_an_error(train, cut, tmp_path):
    cut(1)
    with pytest.raises(Cut):
        train(tmp_path)
    (tmp_path / "checkpoints/step-1/manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        train(tmp_path, resume=True)

"""One run a seed: the same as each by itself, resumable, with the median and the quartiles."""

import json

import numpy as np
import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.train import run as verb
from featherweight.train.loop import Loop
from featherweight.train.repeats import placed, spread, spreads


class Cut(Exception):
    """The power went off."""


@pytest.fixture
def given(tiny_folder, monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])
    rows = f"{tiny_folder}/rows.jsonl"
    return [str(tiny_folder), {"train": rows, "valid": rows}, fw.CausalLM()], {
        "method": fw.LoRA(rank=2), "steps": 3, "batch": 8, "checkpoint_every": 1, "threads": 1,
    }  # fmt: skip


def test_quartiles_are_numpys():
    for values in ([3.0], [1.0, 2.0], [0.2, 0.9, 0.4], [5, 1, 4, 2, 3], [7, 1, 1, 9, 4, 6]):
        found = spread(values)
        wanted = np.percentile(values, [25, 50, 75])
        assert (found.lower, found.median, found.upper) == pytest.approx(wanted)
        assert found.iqr == pytest.approx(wanted[2] - wanted[0])
    assert list(spreads([{"a": 1.0, "b": 2.0}, {"a": 3.0}])) == ["a"]
    assert spreads([]) == {}


def test_each_seed_is_a_run_like_any_other(given, adapter, tmp_path):
    words, options = given
    found = fw.repeat(*words, seeds=(0, 7), output=tmp_path / "both", **options)
    for seed in (0, 7):
        fw.train(*words, output=tmp_path / f"alone-{seed}", seed=seed, **options)
        ours, theirs = adapter(tmp_path / "both" / f"seed-{seed}"), adapter(tmp_path / f"alone-{seed}")
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    losses = [found.runs[seed].scores["loss"] for seed in (0, 7)]
    assert losses[0] != losses[1]
    assert found.summary["loss"].median == pytest.approx(sum(losses) / 2)
    assert json.loads((tmp_path / "both" / "seeds.json").read_text()) == found.to_dict()


def test_a_crash_loses_only_what_the_running_seed_had_not_saved(given, adapter, tmp_path, monkeypatch):
    words, options = given
    whole = fw.repeat(*words, seeds=(0, 1, 2), output=tmp_path / "whole", **options)
    real, steps = Loop.advance, []

    def dying(self, *done):
        if self.settings.seed == 1 and self.progress.step == 2 and "cut" not in steps:
            steps.append("cut")
            raise Cut
        steps.append(self.settings.seed)
        return real(self, *done)

    monkeypatch.setattr(Loop, "advance", dying)
    with pytest.raises(Cut):
        fw.repeat(*words, seeds=(0, 1, 2), output=tmp_path / "cut", **options)
    steps[:] = ["cut"]
    again = fw.repeat(*words, seeds=(0, 1, 2), output=tmp_path / "cut", resume=True, **options)
    assert steps == ["cut", 1, 2, 2, 2]  # of seed 0 nothing, of seed 1 the last step, of seed 2 all
    assert again.scores == whole.scores
    for seed in (0, 1, 2):
        ours, theirs = (adapter(tmp_path / name / f"seed-{seed}") for name in ("cut", "whole"))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    with pytest.raises(InputError, match="the output folder is not empty"):
        fw.repeat(*words, seeds=(0,), output=tmp_path / "cut", **options)
    with pytest.raises(InputError, match=r"settings.lr: changed since the run began"):
        fw.repeat(*words, seeds=(0,), output=tmp_path / "cut", resume=True, lr=0.5, **options)


def test_every_seed_may_have_a_file_of_its_own():
    assert placed("draws/{seed}_seed.jsonl", 42) == "draws/42_seed.jsonl"
    assert placed({"train": "{seed}.csv", "valid": "v.csv"}, 1) == {"train": "1.csv", "valid": "v.csv"}
    assert placed(["{seed}.csv", "b.csv"], 1) == ["1.csv", "b.csv"]
    rows = [{"text": "{seed}"}]
    assert placed(rows, 1) == rows


def test_without_dev_rows_the_training_loss_is_compared(given, tmp_path):
    (model, data, task), options = given
    found = fw.repeat(model, data["train"], task, seeds=(0,), output=tmp_path / "out", **options)
    assert list(found.summary) == ["training loss"]
    assert found.summary["training loss"].median == found.runs[0].history[-1]["loss"]


def test_what_cannot_be_repeated(make, lm_rows, tmp_path, given):
    with pytest.raises(InputError, match="a live model trains once"):
        fw.repeat(make("llama"), lm_rows, seeds=(0, 1), output=tmp_path / "out")
    with pytest.raises(InputError, match="no seed to train with"):
        fw.repeat(*given[0], seeds=(), output=tmp_path / "out")

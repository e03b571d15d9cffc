"""Starts from weights and from data inside a run: resumed to the same bits, saved, and read back."""

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.core.state import state
from featherweight.train import run as verb
from featherweight.train.loop import Loop


class Cut(Exception):
    """The power went off."""


METHODS = {
    "eva": fw.LoRA(rank=2, targets="linear", init="eva"),
    "pissa": fw.LoRA(rank=2, init="pissa", lr_ratio=4),
    "dora": fw.DoRA(rank=2, dropout=0.1),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_cut_and_resumed_ends_with_the_same_bits(method, make, tokenizer, lm_rows, split, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])
    real = Loop.advance

    def dying(self, *given):
        if self.progress.step == 2:
            monkeypatch.setattr(Loop, "advance", real)
            raise Cut
        return real(self, *given)

    def train(folder, **options):
        model = make("llama")
        verb.train(model, split(lm_rows, 8), output=folder, method=method, tokenizer=tokenizer, steps=4, batch=8,
                   lr=1e-2, checkpoint_every=1, seed=3, **options)  # fmt: skip
        return model

    whole = state(train(tmp_path / "whole"), "default")
    monkeypatch.setattr(Loop, "advance", dying)
    with pytest.raises(Cut):
        train(tmp_path / "cut")
    resumed = train(tmp_path / "cut", resume=True)
    ended = state(resumed, "default")
    assert sorted(ended) == sorted(whole)
    assert all(torch.equal(ended[k], t) for k, t in whole.items())
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(t, files[1][k]) for k, t in files[0].items())
    back = state(fw.load(make("llama"), tmp_path / "cut"), "default")
    assert all(torch.equal(back[k], t) for k, t in whole.items())
    ranks = [t.shape[0] for k, t in whole.items() if k.endswith("lora_A.weight")]
    assert sum(ranks) == 2 * (14 if method.init == "eva" else 4)
    assert len(set(ranks)) > 1 or method.init != "eva"

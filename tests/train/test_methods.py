"""Methods that the loop does more for than step: AdaLoRA's budget over a run, cut short and gone on with."""

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, read_json
from featherweight.train import run as verb
from featherweight.train.loop import Loop

METHOD = fw.AdaLoRA(rank=4, target_rank=2, dropout=0.1, start=1, final=3, every=2)


class Cut(Exception):
    """The power went off."""


@pytest.fixture
def train(monkeypatch, make, tokenizer, lm_rows, split):
    """train(output, cut=step): a run of 10 steps, that dies before it makes the step after `cut`."""
    monkeypatch.setattr(verb, "curve", lambda *_: [])
    real = Loop.advance

    def start(output, cut=None, **values):
        def dying(self, *given):
            if self.progress.step == cut:
                raise Cut
            return real(self, *given)

        monkeypatch.setattr(Loop, "advance", dying)
        return verb.train(make("llama"), split(lm_rows, 8), output=output, method=METHOD, tokenizer=tokenizer, batch=8,
                          steps=10, lr=1e-2, checkpoint_every=1, best=False, **values)  # fmt: skip

    return start


def test_adalora_resumes_to_the_same_bits_and_ends_within_its_budget(train, tmp_path, make):
    """Cut in the middle of the allocation: importances, masks and moments come back."""
    train(tmp_path / "whole")
    with pytest.raises(Cut):
        train(tmp_path / "cut", cut=5)
    train(tmp_path / "cut", resume=True)
    for name in ("adapter", "optimizer"):
        a, b = (load_file(tmp_path / run / f"checkpoints/step-10/{name}.safetensors") for run in ("whole", "cut"))
        assert sorted(a) == sorted(b)
        assert all(torch.equal(a[k], b[k]) for k in a)
    tensors = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert sum(t.shape[0] for k, t in tensors.items() if k.endswith("lora_E")) == 2 * 14
    assert read_json(tmp_path / "cut" / CONFIG)["rank_pattern"]
    model = fw.load(make("llama"), tmp_path / "cut")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with fw.switch(model, None):
            assert (model(input_ids=ids).logits - on).abs().max() > 1e-4

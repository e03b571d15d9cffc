"""FishMask and intrinsic dimension from the command line: trained, resumed to the same weights, scored, merged."""

import os
import signal

import pytest


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "fishmask", "--method.density", "0.05", "--method.samples", "10"],
        ["--method", "intrinsic", "--method.dimension", "300"],
    ],
    ids=["fishmask", "intrinsic"],
)
def test_trains_resumes_scores_and_merges(fw, bert, table, tmp_path, flags, monkeypatch):
    import torch
    from safetensors.torch import load_file

    from featherweight.train.step import Stepper

    common = ["train", "--model", bert, "--data", table, *flags]
    common += ["--steps", 12, "--lr", "1e-2", "--batch", 8, "--checkpoint-every", 5]
    whole = fw(*common, "--output", tmp_path / "whole", "--json")
    assert whole.code == 0, whole.err
    real = Stepper.make

    def make(self, at):
        if at == 8:
            monkeypatch.setattr(Stepper, "make", real)
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, at)

    monkeypatch.setattr(Stepper, "make", make)
    assert fw(*common, "--output", tmp_path / "parts").code == 130
    assert fw(*common, "--output", tmp_path / "parts", "--resume").code == 0
    one, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(t, other[k]) for k, t in one.items())
    scores = fw("eval", "--adapter", tmp_path / "whole", "--data", table, "--json").json
    assert scores["rows"] == 40
    assert fw("merge", "--adapter", tmp_path / "whole", "--output", tmp_path / "plain").code == 0
    plain = fw("eval", "--model", tmp_path / "plain", "--data", table, "--json")
    assert plain.json["loss"] == pytest.approx(scores["loss"], rel=1e-4), plain.err

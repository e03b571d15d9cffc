"""A run and its file: stopped and gone on with, run again, gone on from; equal weights every time."""

import json
import os
import signal
import tomllib

import pytest

SHORT = ["--batch", 8, "--steps", 6, "--log", 1, "--lr", "1e-2", "--checkpoint-every", 2]


@pytest.fixture
def stopping(monkeypatch):
    """stopping(signal, step): the next run gets that signal, a real one, while it makes that step."""
    from featherweight.train.step import Stepper

    real = Stepper.make

    def arm(number, step):
        def make(self, at):
            if at == step:
                monkeypatch.setattr(Stepper, "make", real)
                os.kill(os.getpid(), number)
            return real(self, at)

        monkeypatch.setattr(Stepper, "make", make)

    return arm


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bert, table):
    """The uninterrupted run."""
    from featherweight.cli.main import main

    out = tmp_path_factory.mktemp("whole") / "o"
    assert main([str(a) for a in ["train", "--model", bert, "--data", table, "--output", out, *SHORT]]) == 0
    return out


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_from_its_file_to_the_same_bits(fw, stopping, whole, bert, table, tmp_path, number, code):
    out = tmp_path / "o"
    stopping(number, 3)
    cut = fw("train", "--model", bert, "--data", table, "--output", out, *SHORT, "--json")
    assert cut.code == cut.json["exit"] == code
    assert "step 3 is saved" in cut.err
    assert not (out / "adapter_model.safetensors").exists()
    assert not (out / ".lock").exists()
    on = fw("train", out / "run.toml", "--resume")
    assert on.code == 0, on.err
    assert "going on after step 3" in on.err
    assert weights(out) == weights(whole)


def test_a_killed_runs_lock_is_no_obstacle_and_a_living_ones_is(fw, stopping, bert, table, tmp_path):
    from featherweight.train.lock import locked

    out = tmp_path / "o"
    stopping(signal.SIGINT, 1)
    assert fw("train", "--model", bert, "--data", table, "--output", out, *SHORT).code == 130
    (out / ".lock").write_text("1\n")
    with locked(out):
        busy = fw("train", out / "run.toml", "--resume")
    assert busy.code == 2
    assert f"another run is writing to the output folder; got process {os.getpid()}" in busy.err
    (out / ".lock").write_text("1\n")
    assert fw("train", out / "run.toml", "--resume").code == 0


def test_what_changed_is_said_and_a_default_spelt_out_is_no_change(fw, stopping, bert, table, tmp_path):
    out = tmp_path / "o"
    argv = ["train", "--model", bert, "--data", table, "--output", out, "--batch", 8, "--steps", 4]
    stopping(signal.SIGINT, 1)
    assert fw(*argv).code == 130
    other = fw(*argv, "--resume", "--seed", 5)
    assert other.code == 2
    assert "--seed: changed since the run began; expected 0; got 5" in other.err
    lr = tomllib.loads((out / "run.toml").read_text())["lr"]
    assert fw(*argv, "--resume", "--lr", lr, "--length", 64).code == 0


def test_the_file_of_a_run_with_columns_and_weights_runs_again(fw, bert, tmp_path):
    for name, words in (("a", ("good", "bad")), ("b", ("tasty", "dull"))):
        lines = [f"{words[i % 2]} food,{i % 2}" for i in range(8)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["reviewed,stars", *lines]) + "\n")
    data = f"{tmp_path}/a.csv:0.7,{tmp_path}/b.csv:0.3"
    first = fw("train", "--model", bert, "--data", data, "--columns", "text=reviewed,label=stars", "--steps", 2,
               "--clip", "none", "--output", tmp_path / "o")  # fmt: skip
    assert first.code == 0, first.err
    assert "--data new.csv --columns text=reviewed\n" in first.out
    form = tomllib.loads((tmp_path / "o/run.toml").read_text())
    assert form["columns"] == {"text": "reviewed", "label": "stars"}
    assert form["data"] == data
    assert form["clip"] == "none"
    again = fw("train", tmp_path / "o/run.toml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    assert weights(tmp_path / "o") == weights(tmp_path / "again")
    for output in (tmp_path / "o", tmp_path / "again"):
        assert fw("train", output / "run.toml", "--resume").code == 0


def test_the_file_of_a_run_from_an_adapter_runs_again(fw, adapter, table, tmp_path):
    first = fw("train", "--from", adapter, "--data", table, "--steps", 2, "--output", tmp_path / "o")
    assert first.code == 0, first.err
    assert tomllib.loads((tmp_path / "o/run.toml").read_text())["from"] == str(adapter)
    again = fw("train", tmp_path / "o/run.toml", "--output", tmp_path / "again")
    assert again.code == 0, again.err
    assert weights(tmp_path / "o") == weights(tmp_path / "again")
    assert fw("train", tmp_path / "o/run.toml", "--resume").code == 0
    rows = [json.loads(line) for line in (tmp_path / "o/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2


def test_files_of_lists_and_splits_are_on_record(tmp_path):
    from pathlib import Path

    from featherweight.train.document import MEMORY, recorded

    assert recorded(Path("a.csv")) == "a.csv"
    assert recorded(["a.csv", Path("b.csv")]) == ["a.csv", "b.csv"]
    assert recorded({"a.csv": 0.7, "b.csv": 1}) == {"a.csv": 0.7, "b.csv": 1}
    assert recorded({"train": "a.csv", "valid": Path("b.csv")}) == {"train": "a.csv", "valid": "b.csv"}
    assert recorded([{"text": "a"}]) == recorded({"train": [{"text": "a"}]}) == MEMORY

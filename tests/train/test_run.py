"""The verb: what it takes, what it leaves behind, what it refuses."""

import json
import tomllib

import pytest
import torch

import featherweight as fw
from featherweight.train import Stopped
from featherweight.train import run as verb
from featherweight.train.evaluation import Dev


@pytest.fixture
def train(make, tokenizer, split, class_rows):
    def start(output=None, model=None, rows=class_rows, **values):
        given = {"method": fw.LoRA(rank=4), "tokenizer": tokenizer, "epochs": 3, "batch": 8, "lr": 1e-2, **values}
        return verb.train(model if model is not None else make("bert"), rows and split(rows, 8), output=output, **given)

    return start


def test_the_package_is_the_verb(make, tokenizer, class_rows):
    run = fw.train(make("bert"), class_rows, method=fw.LoRA(), tokenizer=tokenizer, steps=1)
    assert callable(fw.train)
    assert run.steps == 1
    assert run.output is None
    assert "history" not in repr(run)


def test_the_output_folder_is_whole(train, tmp_path, capsys, make):
    out = tmp_path / "out"
    model = make("bert")
    run = train(out, model, log=2)
    names = {p.name for p in out.iterdir()}
    of_use = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert names == of_use | {"run.toml", "metrics.jsonl", "loss.png", "loss.svg", "checkpoints"}
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "dev" in line] == [4, 8, 12]
    assert {"loss", "accuracy"} <= set(run.scores)
    assert run.trainable == fw.trainable(model).trainable
    assert run.tokens_per_second > 0
    assert run.seconds > 0
    told = capsys.readouterr().err
    assert "step 12/12" in told
    assert "the weights are those of the" in told


def test_run_toml_is_resolved_and_reads_back(train, tmp_path):
    train(tmp_path / "out", lr=None, epochs=1)
    form = tomllib.loads((tmp_path / "out/run.toml").read_text())
    assert form["lr"] == fw.LoRA.lr
    assert form["epochs"] == 1.0
    assert form["length"] == 64
    assert form["method"] == {"type": "lora", "rank": 4}
    assert form["task"]["type"] == "classification"
    assert form["task"]["labels"] == ["no", "yes"]
    values = {k: v for k, v in form.items() if k not in ("model", "data", "output", "name", "method", "task")}
    assert fw.train.settings(values).batch == 8


def test_the_card_names_everything_and_no_place_on_this_machine(train, tmp_path):
    train(tmp_path / "out", epochs=1)
    text = (tmp_path / "out/README.md").read_text()
    for piece in (
        "library_name: peft",
        "LoRA(rank=4)",
        "Classification(labels=('no', 'yes'))",
        "| lr | 0.01 |",
        torch.__version__,
        "accuracy",
    ):
        assert piece in text
    assert str(tmp_path) not in text
    assert "/home/" not in text
    assert "/tmp" not in text


def test_the_best_step_wins(train, make, tmp_path, monkeypatch, capsys):
    """Dev scores are dictated: step 8 is the best; memory and disk agree, and the final adapter is that of step 8."""
    from featherweight.core.state import state

    marks, kept = iter([0.5, 0.9, 0.7] * 2), []

    def dictated(self, model, *_):
        kept.append({k: t.clone() for k, t in state(model, "default").items()})
        return {"loss": 1.0, self.task.best[0]: next(marks) if self.task.best[1] else -next(marks)}, None

    monkeypatch.setattr(Dev, "scores", dictated)
    for output in (tmp_path / "out", None):
        model = make("bert")
        run = train(output, model, keep=1)
        assert "the best step, 8 of 12" in capsys.readouterr().err
        assert all(torch.equal(t, kept[-2][k]) for k, t in state(model, "default").items())
        assert not all(torch.equal(t, kept[-1][k]) for k, t in state(model, "default").items())
        assert run.steps == 12
    assert sorted(p.name for p in (tmp_path / "out/checkpoints").iterdir()) == ["step-12", "step-8"]


def test_patience_ends_a_run(train, monkeypatch):
    marks = iter([0.5, 0.9, 0.7, 0.6, 0.95])
    monkeypatch.setattr(Dev, "scores", lambda self, *_: ({"loss": 1.0, "accuracy": next(marks)}, None))
    run = train(epochs=None, steps=50, eval_every=2, patience=2)
    assert run.steps == 8
    assert [line["step"] for line in run.history if "loss" in line] == [1, 2, 4, 6, 8]  # any of them might be the last


def test_a_short_run_has_a_curve_its_first_and_last_step(train):
    lines = [line for line in train(epochs=None, steps=7, eval_every=3).history if "loss" in line]
    assert [line["step"] for line in lines] == [1, 7]
    assert lines[1]["loss"] < lines[0]["loss"]


def test_a_folder_with_something_in_it_is_refused(train, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(fw.InputError, match="the output folder is not empty"):
        train(tmp_path)
    with pytest.raises(fw.InputError, match="holds no run to resume"):
        train(tmp_path, resume=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_as_output_and_resume_without_output_are_refused(train, tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(fw.InputError, match="a file, not a folder"):
        train(tmp_path / "f")
    with pytest.raises(fw.InputError, match="nothing to resume without an output folder"):
        train(resume=True)


def test_nothing_marked_to_train_is_refused(train, make):
    with pytest.raises(fw.InputError, match="nothing to train"):
        train(method=None)
    model = fw.attach(make("bert"), fw.LoRA(), train=False)
    with pytest.raises(fw.InputError, match="nothing to train"):
        train(model=model, method=None)


def test_only_the_marked_adapter_of_a_stack_trains(train, make):
    from featherweight.core.state import state

    model = fw.attach(make("bert"), fw.LoRA(), "below", train=False, head=False)
    fw.attach(model, fw.LoRA(), "above", stack=True)
    before = {n: {k: t.clone() for k, t in state(model, n).items()} for n in ("below", "above")}
    train(model=model, method=None, epochs=1)
    assert all(torch.equal(t, before["below"][k]) for k, t in state(model, "below").items())
    assert not all(torch.equal(t, before["above"][k]) for k, t in state(model, "above").items())


def test_a_head_of_another_size_is_refused(train, make):
    with pytest.raises(fw.InputError, match="another number of outputs"):
        train(model=make("bert", num_labels=5))


def test_rows_without_a_trained_token_do_not_start():
    from featherweight.data.types import Encoded
    from featherweight.train import setup

    said = []
    stuff = setup.Material(fw.CausalLM(), [], [], None, "rows")
    bare, good = Encoded("f.jsonl:1", [5, 6], [-100, -100]), Encoded("f.jsonl:2", [5, 6], [-100, 6])
    kept = setup.feed(stuff, [bare, good], 0, 8, fw.train.settings({}), None, said.append)
    assert [row.where for row in kept.rows] == ["f.jsonl:2"]
    assert said == ["1 rows have no trained token and are left out: f.jsonl:1"]
    with pytest.raises(fw.InputError, match="no row has a trained token"):
        setup.feed(stuff, [bare, bare], 0, 8, fw.train.settings({}), None, said.append)
    with pytest.raises(fw.InputError, match=r"f\.jsonl:3: no label to train on"):
        setup.feed(stuff, [good, Encoded("f.jsonl:3", [5], None)], 0, 8, fw.train.settings({}), None, said.append)


def test_a_signal_before_the_first_step_saves_nothing(train, tmp_path, monkeypatch):
    from featherweight.train.stop import Stop

    monkeypatch.setattr(Stop, "signal", 15, raising=False)
    monkeypatch.setattr(Stop, "__init__", lambda self: setattr(self, "before", {}))
    with pytest.raises(Stopped, match="nothing had to be saved") as caught:
        train(tmp_path / "out")
    assert caught.value.code == 143
    assert not (tmp_path / "out/checkpoints").exists()


def test_tensorboard_has_every_number(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "out", tensorboard=True, epochs=1, log=1)
    events = EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    assert {"loss", "lr", "grad_norm", "dev/loss", "dev/accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 4

"""`fw distill`: a folder with the student, its runs, its control and the report; and all mistakes at once."""

import json
import shutil
import tomllib

import pytest
import torch

import featherweight as fw_api

FEW = ("--epochs", "2", "--batch", "8", "--lr", "1e-3", "--rounds", "2", "--layers", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory, table):
    """The table as a training split, and some of it as a test split."""
    folder = tmp_path_factory.mktemp("split")
    shutil.copy(table, folder / "train.csv")
    lines = table.read_text().splitlines()
    (folder / "test.csv").write_text("\n".join([lines[0], *lines[1:25]]) + "\n")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, adapter, data):
    from featherweight.cli.main import main

    folder = tmp_path_factory.mktemp("distilled") / "small"
    argv = ["distill", adapter, data, *FEW, "--cache", "--control", "--recipe.temperature", "4", "--output", folder]
    assert main([str(a) for a in argv]) == 0
    return folder


def test_what_is_in_the_folder(small):
    assert {p.name for p in small.iterdir()} == {"control", "distill.toml", "report.json", "report.png", "run",
                                                 "student", "teacher"}  # fmt: skip
    assert (small / "report.png").read_bytes().startswith(b"\x89PNG")
    asked = tomllib.loads((small / "distill.toml").read_text())
    assert asked["recipe"] == {"type": "kd", "temperature": 4.0}
    assert asked["cache"] == {"top": 0, "dtype": "fp32", "changed": "refuse"}
    report = json.loads((small / "report.json").read_text())
    assert report["split"] == "test"
    assert report["rows"] == 24
    assert report["student"]["transformer"] < report["teacher"]["transformer"]
    assert report["gained"]["low"] <= report["gained"]["value"] <= report["gained"]["high"]
    assert [c["rows"] for c in sorted(report["classes"], key=lambda c: c["name"])] == [12, 12]


def test_the_student_is_a_model_like_any(fw, small, data):
    import transformers as hf

    plain = hf.AutoModelForSequenceClassification.from_pretrained(small / "student")
    assert plain.config.num_hidden_layers == 1
    assert plain.config.id2label == {0: "no", 1: "yes"}
    report = json.loads((small / "report.json").read_text())
    scored = fw("eval", "--model", small / "student", "--data", data, "--json")
    assert scored.code == 0, scored.err
    assert scored.json["accuracy"] == pytest.approx(report["student"]["scores"]["accuracy"])
    shown = fw("predict", "--model", small / "student", "good inn")
    assert shown.code == 0, shown.err
    assert "yes" in shown.out or "no" in shown.out


def test_what_it_says(fw, adapter, data, tmp_path):
    shown = fw("distill", adapter, data, *FEW, "--out", tmp_path / "d")
    assert shown.code == 0, shown.err
    for said in ("times as fast", "agrees with the teacher on", "ECE, 15 bins", "no control: train the same student",
                 "yes: ", f"next: fw predict --model {tmp_path / 'd' / 'student'}"):  # fmt: skip
        assert said in shown.out, said


def test_json_is_one_object(fw, adapter, data, tmp_path):
    got = fw("distill", adapter, data, *FEW, "--recipe", "minilm", "--output", tmp_path / "d", "--json").json
    assert got["command"] == "distill"
    assert got["runs"]["run"]["steps"] == 10
    assert 0 <= got["report"]["agreement"]["value"] <= 1
    assert got["adapter"] is None


def test_two_stages_of_tinybert_in_one_command(fw, adapter, data, tmp_path):
    given = ("--recipe", "tinybert", "--cache", "--first.epochs", "1", "--first.lr", "5e-4")
    shown = fw("distill", adapter, data, *FEW, *given, "--output", tmp_path / "d")
    assert shown.code == 0, shown.err
    layers, prediction = (
        tomllib.loads((tmp_path / "d" / s / "run.toml").read_text()) for s in ("layers", "prediction")
    )
    assert (layers["epochs"], layers["lr"]) == (1.0, 5e-4)
    assert (prediction["epochs"], prediction["lr"]) == (2.0, 1e-3)
    assert layers["task"]["recipe"] == {"type": "tinybert"}
    assert prediction["task"]["recipe"] == {"type": "tinybert", "stage": "prediction"}
    assert {p.name for p in (tmp_path / "d" / "teacher").iterdir()} == {"layers", "prediction"}
    one = fw("distill", adapter, data, *FEW, "--recipe", "tinybert", "--recipe.stage", "layers", "--output",
             tmp_path / "e")  # fmt: skip
    assert one.code == 0, one.err
    assert (tmp_path / "e" / "run").is_dir()
    twice = fw("distill", adapter, data, *FEW, "--recipe", "tinybert", "--recipe.stage", "layers",
               "--first.epochs", "1", "--output", tmp_path / "f")  # fmt: skip
    assert (twice.code, "--first.epochs: the recipe has one stage" in twice.err) == (2, True)


def test_interrupted_in_its_second_stage_and_resumed(fw, adapter, data, tmp_path, monkeypatch):
    """Stopped between two steps of the second stage, gone on with: the same student, bit for bit."""
    from featherweight.train import loop

    argv = ("distill", adapter, data, *FEW, "--recipe", "tinybert", "--checkpoint-every", "2")
    assert fw(*argv, "--output", tmp_path / "whole").code == 0
    advance, count = loop.Loop.advance, []

    def dying(self, done):
        advance(self, done)
        count.append(1)
        if len(count) == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "advance", dying)
    assert fw(*argv, "--output", tmp_path / "halved").code == 130
    monkeypatch.undo()
    again = fw("distill", tmp_path / "halved" / "distill.toml", "--resume")
    assert again.code == 0, again.err
    assert "going on after step 4" in again.err
    mine, theirs = (fw_api.load_base(tmp_path / name / "student").state_dict() for name in ("whole", "halved"))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_an_adapter_as_student(fw, adapter, data, tmp_path):
    shown = fw("distill", adapter, data, *FEW, "--method", "lora", "--method.rank", "2", "--output", tmp_path / "d")
    assert shown.code == 0, shown.err
    assert f"next: fw predict --adapter {tmp_path / 'd' / 'run'}" in shown.out
    answered = fw("predict", "--adapter", tmp_path / "d" / "run", "good inn", "--json")
    assert answered.code == 0, answered.err
    scored = fw("eval", "--adapter", tmp_path / "d" / "run", "--data", data, "--json").json
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert scored["loss"] == pytest.approx(report["student"]["scores"]["loss"], rel=1e-5)


def test_a_quantized_teacher_and_a_student_of_ones_own(fw, adapter, small, data, tmp_path):
    given = ("--student", small / "student", "--quantize-teacher", "absmax", "--quantize-teacher.bits", "4")
    shown = fw("distill", adapter, data, *FEW[:-2], *given, "--output", tmp_path / "d", "--json")
    assert shown.code == 0, shown.err
    float_teacher = json.loads((small / "report.json").read_text())["teacher"]["bytes"]
    assert shown.json["report"]["teacher"]["bytes"] < float_teacher
    assert tomllib.loads((tmp_path / "d" / "distill.toml").read_text())["quantize_teacher"]["bits"] == 4


def test_augmented_rows(fw, adapter, bert, data, tmp_path):
    given = ("--augment", bert, "--augment.context", "false", "--augment.samples", "2", "--augment.share", "0.9")
    shown = fw("distill", adapter, data, *FEW, *given, "--output", tmp_path / "d")
    assert shown.code == 0, shown.err
    assert "40 rows became " in shown.err
    again = fw("distill", tmp_path / "d" / "distill.toml", "--output", tmp_path / "e", "--json")
    assert again.code == 0, again.err
    assert again.json["runs"]["run"]["steps"] > 10


def test_importance_chooses_the_blocks(fw, adapter, data, tmp_path):
    shown = fw("distill", adapter, data, *FEW, "--blocks", "importance", "--output", tmp_path / "d")
    assert shown.code == 0, shown.err


def test_rows_without_labels_are_distilled_and_not_reported_on(fw, adapter, table, tmp_path):
    (tmp_path / "bare.csv").write_text("text\n" + "".join(f"good inn {w}\n" for w in ("pub", "city", "river", "fast")))
    shown = fw("distill", adapter, tmp_path / "bare.csv", *FEW, "--recipe.alpha", "1", "--output", tmp_path / "d")
    assert shown.code == 0, shown.err
    assert "no report: " in shown.out
    assert not (tmp_path / "d" / "report.json").exists()


BAD = [
    (("--recipe", "tinybret"), ["--recipe: unknown recipe; got 'tinybret'; did you mean 'tinybert'?"]),
    (("--recipe", "minilm", "--recipe.temperature", "4"), ["--recipe.temperature: unknown key"]),
    (("--recipe.temperatur", "4"), ["--recipe.temperatur: unknown key; did you mean 'temperature'?"]),
    (("--cache.dtyp", "bf16"), ["--cache.dtyp: unknown key; did you mean 'dtype'?"]),
    (("--cache.dtype", "fp8"), ["--cache.dtype: unknown dtype; got 'fp8'"]),
    (("--augment.samples", "3"), ["--augment.samples: an option of no augmentation; --augment MODEL"]),
    (("--student", "x", "--width", "8"), ["--width: a student of your own has its sizes"]),
    (("--first.lr", "1e-4"), ["--first.lr: the recipe has one stage"]),
    (("--quantize-teacher", "int8"), ["--quantize-teacher: unknown number format; got 'int8'"]),
    (("--layres", "3"), ["--layres: unknown key; did you mean '--layers'?"]),
    (("--layers", "three", "--epochs", "-1"), ["--layers: wrong value", "--epochs: wrong value"]),
    (("--epochs", "1", "--steps", "3"), ["give epochs or steps, not both"]),
    (("--rounds", "1"), ["--rounds: wrong value; expected at least 2; got 1"]),
    (("more",), ["a word too many; got 'more'"]),
    (("--teacher", "x"), ["--teacher: given twice"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_mistakes(fw, flags, said, adapter, data, tmp_path):
    shown = fw("distill", adapter, data, *flags, "--output", tmp_path / "d")
    assert shown.code == 2
    for one in said:
        assert one in shown.err, shown.err
    assert not (tmp_path / "d").exists()


def test_more_mistakes(fw, adapter, data, tmp_path, small):
    assert "teacher: a teacher is needed" in fw("distill", "--epochs", "1").err
    assert "data: data is needed" in fw("distill", adapter).err
    taken = fw("distill", adapter, data, "--output", small)
    assert (taken.code, "the output is there already" in taken.err) == (2, True)
    none = fw("distill", tmp_path, data, "--output", tmp_path / "d")
    assert (none.code, "no model in this folder" in none.err) == (2, True)
    five = fw("distill", adapter, data, "--layers", "5", "--output", tmp_path / "d")
    assert (five.code, "--layers: no number of layers; expected 1 to 2; got 5" in five.err) == (2, True)


def test_the_file_names_the_line(fw, adapter, data, tmp_path):
    file = tmp_path / "distill.toml"
    file.write_text(f'teacher = "{adapter}"\ndata = "{data}"\nlayers = 1\n\n[recipe]\ntype = "kd"\nalhpa = 0.3\n')
    shown = fw("distill", file)
    assert shown.code == 2
    assert "distill.toml:7:recipe.alhpa: unknown key; did you mean 'alpha'?" in shown.err


def test_help(fw):
    shown = fw("distill", "--help", "--json").json
    assert {"teacher", "recipe", "layers", "cache", "augment", "control", "epochs", "keep"} <= shown["keys"].keys()
    assert "Newest checkpoints" in shown["keys"]["keep"]["about"]

"""Bad input, failures, interruptions, terminals that cannot show much: an exit code, words, never a traceback."""

import subprocess
import sys

import pytest


def bad(fw, *argv, says):
    """Exit code 2, the words in question, no traceback; and with --json the same as one object."""
    result = fw(*argv)
    assert result.code == 2, result.err
    assert says.lower() in result.err.lower()
    assert "Traceback" not in result.err
    machine = fw(*argv, "--json")
    assert machine.code == machine.json["exit"] == 2
    assert machine.json["problems"]
    return result.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "trian: unknown command; did you mean 'train'?"),
        (["--versoin"], "did you mean '--version'?"),
        (["eval", "--adaptor", "x"], "--adaptor: unknown flag; did you mean '--adapter'?"),
        (["eval", "--batch", "many", "--adaptor", "x"], "--batch: wrong value; expected int; got 'many'"),
        (["eval", "--data", "x.csv"], "which model?"),
        (["predict"], "data is needed"),
        (["generate"], "a prompt is needed"),
        (["merge"], "--adapter"),
        (["data"], "data is needed"),
        (["eval", "--adapter", "nowhere", "--data", "x.csv"], "nowhere"),
        (["train", "--lr", "1"], "a model is needed"),
    ],
)
def test_wrong_words(fw, argv, says):
    bad(fw, *argv, says=says)


def test_two_wrong_flags_are_said_together(fw):
    said = bad(fw, "eval", "--adaptor", "x", "--batch", "many", "--dta=3", says="--adaptor")
    assert "--batch" in said
    assert "did you mean '--data'?" in said


def test_an_output_folder_in_use_is_refused(fw, adapter, bert, table):
    before = (adapter / "adapter_model.safetensors").read_bytes()
    bad(fw, "train", "--model", bert, "--data", table, "--output", adapter, says="not empty; resume")
    assert (adapter / "adapter_model.safetensors").read_bytes() == before


def test_predict_refuses_a_format_it_cannot_write(fw, adapter, table, tmp_path):
    bad(fw, "predict", "--adapter", adapter, "--data", table, "--output", tmp_path / "a.xlsx", says=".csv")


def test_the_demo_leaves_other_folders_alone(fw, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    bad(fw, "demo", "--output", tmp_path, says="not a demo")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_demos_weights_are_checked(tmp_path):
    from featherweight.cli.demo_model import SHA256, model_folder, verify
    from featherweight.core.errors import InputError

    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="not the released weights"):
        verify(tmp_path / "model.safetensors", SHA256)
    verify(model_folder() / "model.safetensors", SHA256)


def test_a_failure_of_ours_is_code_1_and_debug_shows_where(fw, monkeypatch, table):
    import featherweight.data.load

    def broken(*args, **kwargs):
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(featherweight.data.load, "load", broken)
    plain, debug = fw("data", table), fw("data", table, "--debug")
    assert plain.code == debug.code == 1
    assert "the sky fell" in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err


def test_help_and_version_import_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "pydantic", "numpy", "sklearn")
    code = (
        "import sys; from featherweight.cli.main import main\n"
        f"for argv in (['--help'], ['--version'], []): assert main(argv) == 0\n"
        f"found = [m for m in {heavy!r} if m in sys.modules]; assert not found, found\n"
        "assert main(['train', '--help']) == 0 and main(['predict', '--help']) == 0\n"
        "found = [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]; assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize(
    ("encoding", "argv"),
    [("ascii", ["methods", "lora"]), ("ascii", ["nöpe"]), ("cp936", ["train", "--help"]), ("cp936", ["--help"])],
)
def test_terminals_that_are_not_utf_8(process, encoding, argv):
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": f"{encoding}:strict"}
    result = process(*argv, **env)
    assert result.code == (2 if argv == ["nöpe"] else 0), result.err
    assert "Error" not in result.err


def test_help_as_json(fw):
    assert "predict" in fw("--help", "--json").json["text"]
    assert fw("train", "--help", "--json").json["keys"]["batch"]["default"] == 16


def test_a_flood_of_problems_is_cut_on_the_screen_and_whole_in_json(fw, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "a,b,c\n" * 100)
    shown, machine = fw("data", tmp_path / "d.csv"), fw("data", tmp_path / "d.csv", "--json")
    assert shown.code == 2
    assert len(shown.err.splitlines()) == 31
    assert "… and 70 more" in shown.err
    assert len(machine.json["problems"]) == 100

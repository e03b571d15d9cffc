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


def test_targets_that_match_nothing_list_what_is_there(fw, bert, table, tmp_path):
    argv = ["train", "--model", bert, "--data", table, "--output", tmp_path / "o", "--method.targets", "qurey"]
    assert "query" in bad(fw, *argv, says="qurey")


FILES = {
    "empty": (b"", "empty"),
    "ragged": (b"text,label\ngood,yes\nbad,no,more\n", "bad.csv:3"),
    "no label": (b"text,label\ngood,yes\nbad,\nnice,no\n", "bad.csv:3:label"),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_tables_name_the_row(fw, bert, tmp_path, kind):
    content, says = FILES[kind]
    (tmp_path / "bad.csv").write_bytes(content)
    bad(fw, "train", "--model", bert, "--data", tmp_path / "bad.csv", "--output", tmp_path / "o", says=says)


def test_truncated_lines_name_the_line(fw, bert, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "good", "label": "yes"}\n{"text": "bad", "la')
    bad(fw, "train", "--model", bert, "--data", tmp_path / "bad.jsonl", "--output", tmp_path / "o", says="bad.jsonl:2")


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b""])
def test_bom_crlf_and_latin_1_are_read(fw, bert, tmp_path, prefix):
    rows = "text,label\r\ncaf\xe9 good,yes\r\nbad,no\r\n".encode("utf-8" if prefix else "latin-1")
    (tmp_path / "d.csv").write_bytes(prefix + rows)
    done = fw(
        "train", "--model", bert, "--data", tmp_path / "d.csv", "--steps", 1, "--output", tmp_path / "o", "--json"
    )
    assert done.code == 0, done.err


def test_a_label_unseen_in_training_is_named(fw, adapter, tmp_path):
    (tmp_path / "new.csv").write_text("text,label\ngood,perhaps\nbad,no\n")
    bad(fw, "eval", "--adapter", adapter, "--data", tmp_path / "new.csv", says="perhaps")


def test_an_output_folder_in_use_is_refused(fw, adapter, bert, table):
    before = (adapter / "adapter_model.safetensors").read_bytes()
    bad(fw, "train", "--model", bert, "--data", table, "--output", adapter, says="not empty; resume")
    assert (adapter / "adapter_model.safetensors").read_bytes() == before


def test_a_damaged_adapter_is_named(fw, adapter, table, tmp_path):
    for file in adapter.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = tmp_path / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:200])
    bad(fw, "eval", "--adapter", tmp_path, "--data", table, says="adapter_model.safetensors")


def test_rank_beyond_the_matrix_and_fp16_on_a_cpu(fw, bert, table, tmp_path):
    start = ["train", "--model", bert, "--data", table, "--output", tmp_path / "o"]
    bad(fw, *start, "--method.rank", 999, says="rank")
    bad(fw, *start, "--precision", "fp16", "--device", "cpu", says="fp16")


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

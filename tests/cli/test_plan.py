"""`fw plan` and `fw train --limit`."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import featherweight as fw
from featherweight.cli.amount import bytes_of
from featherweight.cli.main import main
from featherweight.core.errors import Problem


@pytest.fixture
def base(data_dir: Path) -> str:
    return str(data_dir / "stories260k" / "hf")


def test_a_plan_is_one_object_and_a_picture(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "memory.svg"
    words = ["plan", base, "--method", "lora", "--method.rank", "4", "--batch", "2", "--length", "32"]
    assert main([*words, "--quantize", "nf4", "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == {"type": "lora", "rank": 4}
    assert found["scheme"] == {"type": "nf4"}
    assert found["train_bytes"] == sum(found["memory"].values())
    assert found["placements"][0]["name"] == "one device"
    assert picture.read_text().startswith("<?xml")


def test_a_screen_and_a_file(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.toml"
    run.write_text(f'model = "{base}"\nmethod = "bitfit"\nbatch = 2\nlength = 16\n')
    assert main(["plan", str(run), "--method", "ia3"]) == 0
    shown = capsys.readouterr().out
    assert "IA3()" in shown
    assert "together" in shown
    assert "FSDP2 or ZeRO-3 over 8" in shown


def test_what_fits(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", base, "--method", "lora", "--quantize", "none", "--length", "16", "--json"]
    assert main([*words, "--fit", "2MB"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert options
    assert all(o["train_bytes"] <= 2_000_000 for o in options)
    assert main([*words, "--fit", "10kB"]) == 1


def test_wrong_words_are_all_said(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", base, "--fit", "much", "--bacth", "3", "--method", "lra", "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {p["what"] for p in problems} == {"not an amount of memory", "unknown key", "unknown method"}
    assert main(["plan", "--batch", "3"]) == 2
    assert "a model is needed" in capsys.readouterr().err


def test_training_refuses_above_its_limit(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    words = ["train", "--model", base, "--data", str(rows), "--output", str(tmp_path / "out"), "--length", "64"]
    assert main([*words, "--limit", "2MB"]) == 2
    said = capsys.readouterr().err
    assert "needs more memory than its limit" in said
    assert "--checkpointing" in said
    assert not (tmp_path / "out").exists()


def test_a_limit_plans_the_run_that_was_asked_for(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own rows and task, not language modelling at full length."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a dog", "label": "b"}\n{"text": "a cat", "label": "c"}\n' * 2)
    words = ["train", "--model", base, "--data", str(rows), "--output", str(tmp_path / "out"), "--steps", "1"]
    plain = ["plan", base, "--batch", "16", "--json"]
    assert main(plain) == 0
    whole = json.loads(capsys.readouterr().out)["train_bytes"]
    assert main([*plain, "--data", str(rows)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"]["type"] == "classification"
    assert found["train_bytes"] < whole / 4
    assert main([*words, "--limit", "1MB"]) == 2
    assert "needs more memory than its limit" in capsys.readouterr().err
    assert main([*words, "--limit", f"{whole // 4}"]) != 2, capsys.readouterr().err


def test_recipe_template_and_draws_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(Path(__file__).parents[2] / "models" / "tiny-t5")
    rows = [{"premise": f"It rained on day {i}.", "hypothesis": "It was wet.", "label": i % 2} for i in range(4)]
    (tmp_path / "7_seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["plan", model, "--data", str(tmp_path / "{seed}_seed.jsonl"), "--seeds", "7,8", "--template", "rte"]
    assert main([*words, "--recipe", "tfew", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["method"], found["batch"]) == ({"type": "seq2seqchoices"}, {"type": "ia3"}, 8)
    assert found["data"]["rows"] == 4 * 3  # templates
    assert main([*words, "--recipe", "tfew", "--template", "rtee", "--json"]) == 2
    assert "rte" in capsys.readouterr().err


def test_a_run_from_an_adapter_is_planned_as_on_record(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base, method and number format; a file without our record says the method in PEFT's words."""
    method, kept = fw.LoRA(rank=3, targets="attention"), str(tmp_path / "adapter")
    model = fw.load_base(base, fw.CausalLM(), quantize=fw.NF4(block=32))
    model.task = fw.CausalLM()
    fw.save(fw.attach(model, method), kept)

    def planned(*words: str) -> dict[str, Any]:
        assert main(["plan", *words, "--length", "16", "--batch", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return {k: v for k, v in found.items() if k not in ("seconds", "method")}

    form = ["--method", "lora", "--method.rank", "3", "--method.targets", "attention"]
    whole = planned(base, *form, "--quantize", "nf4", "--quantize.block", "32")
    live = fw.load_model(kept, train=True)
    assert planned("--from", kept) == whole
    assert whole["trainable"] == fw.trainable(live).trainable
    assert planned(base, "--from", kept, "--quantize", "none") == planned(base, *form)
    with_data = [{"prompt": "Once", "completion": " upon a time."}]
    assert fw.plan(start=kept, data=with_data, batch=1).method == method
    file = Path(kept) / "adapter_model.safetensors"
    save_file(load_file(file), file)  # no record: another library's
    assert planned(base, "--from", kept)["trainable"] == whole["trainable"]
    assert main(["plan", base, "--from", kept, "--fit", "1GB", "--length", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]


def test_what_cannot_be_planned_says_where(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "choices": ["b", "c"], "label": 7}\n')
    assert main(["plan", base, "--data", str(rows)]) == 2
    assert "rows.jsonl:1" in capsys.readouterr().err
    assert main(["plan", base, "--from", "out/run"]) == 2
    assert "out/run" in capsys.readouterr().err
    assert main(["plan", base, "--from", "out/run", "--method", "lora"]) == 2
    assert "--from: an adapter that is gone on with keeps its method" in capsys.readouterr().err
    assert main(["plan", base, "--task", "questionansering"]) == 2
    assert "did you mean 'questionanswering'" in capsys.readouterr().err
    assert main(["plan", base, "--length", "9999"]) == 2
    assert "--length: more tokens than the model has positions" in capsys.readouterr().err


AMOUNTS = [("6GB", 6 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("7", 7), ("2k", 2000)]


@pytest.mark.parametrize(("text", "count"), AMOUNTS)
def test_amounts(text: str, count: int) -> None:
    problems: list[Problem] = []
    assert bytes_of(text, "", problems) == count
    assert not problems

"""`fw plan` and `fw train --limit`."""

import json
from pathlib import Path

import pytest

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


AMOUNTS = [("6GB", 6 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("7", 7), ("2k", 2000)]


@pytest.mark.parametrize(("text", "count"), AMOUNTS)
def test_amounts(text: str, count: int) -> None:
    problems: list[Problem] = []
    assert bytes_of(text, "", problems) == count
    assert not problems

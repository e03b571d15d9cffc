import json
import sys

import pytest

from featherweight.train.log import Bar, Journal, Plain, Silent, voice
from featherweight.train.plot import curve, draw, smoothed


def test_lines_after_the_checkpoint_are_dropped_also_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Journal(path)
    for step in range(5):
        first.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    again = Journal(path, lines=3)
    again.write({"step": 30})
    assert [r["step"] for r in again.history] == [0, 1, 2, 30]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 30]
    assert Journal(path).history == []
    assert path.read_bytes() == b""


def test_plain_lines_where_there_is_no_terminal(capsys):
    speaker = voice(True)
    assert isinstance(speaker, Plain)
    for step in range(1, 101):
        speaker.step(step, 100, 0.5, 1234.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "step 100/100  loss 0.5000  1,234 tokens/s"
    assert isinstance(voice(False), Silent)


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    speaker = voice(True)
    assert isinstance(speaker, Bar)
    speaker.step(3, 10, 0.25, 99.0)
    speaker.say("[bold]not markup")
    speaker.close()
    told = capsys.readouterr().err
    assert "3/10" in told
    assert "loss 0.2500" in told
    assert "[bold]not markup" in told


def test_the_curve_has_training_dev_and_the_best_step(tmp_path):
    pytest.importorskip("matplotlib")
    history = [{"step": s, "loss": 4.0 / s} for s in range(1, 30)]
    history += [{"step": s, "dev": {"loss": 5.0 / s, "accuracy": s / 30}} for s in (10, 20)]
    paths = curve(history, tmp_path, ("accuracy", 20))
    assert [p.name for p in paths] == ["loss.png", "loss.svg"]
    svg = paths[1].read_text()
    for text in ("training, smoothed", "best: step 20", "dev accuracy", "optimizer step"):
        assert f"<!-- {text} -->" in svg
    assert curve([], tmp_path) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_short_run_has_whole_steps_on_its_axis(steps):
    pytest.importorskip("matplotlib")
    drawn = draw([(s, 4.0 / s) for s in range(1, steps + 1)], [], None)
    assert all(float(at).is_integer() for at in drawn.axes[0].get_xticks())
    assert drawn.axes[0].lines[1].get_marker() == "o"  # one point alone is to be seen too


def test_smoothing_has_no_lag():
    assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])
    assert smoothed([0.0, 3.0, 0.0]) == pytest.approx([0.0, 1.0, 0.0])

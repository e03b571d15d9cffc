"""The demo's own parts: what it says of a result, and which folders it may replace. `make demo` is the whole."""

import pytest

FOUND = {
    "train": 700, "valid": 120, "test": 200, "intents": 10, "frozen_accuracy": 0.81, "tuned_accuracy": 0.8,
    "trainable": 5, "total": 100, "share": 0.05, "seconds": 61.4, "tokens_per_second": 1234.5, "output": "out/demo",
}  # fmt: skip


@pytest.fixture
def said(capsys):
    from featherweight.cli.demo_command import screen
    from featherweight.cli.screen import Shown

    Shown({}, screen(FOUND)).print()
    return capsys.readouterr().out


def test_both_accuracies_with_their_counts(said):
    """Also where tuning was worse: the screen says what was found."""
    frozen = next(line for line in said.splitlines() if line.strip().startswith("frozen"))
    tuned = next(line for line in said.splitlines() if line.strip().startswith("tuned"))
    assert frozen.split()[-2:] == ["162", "81.0%"]
    assert tuned.split()[-2:] == ["160", "80.0%"]
    assert "200 unseen messages" in said
    assert "one message is 0.5%" in said
    assert "about 2.8%" in said  # √(0.8 · 0.2 / 200)


def test_the_cost_and_where_to_go_on(said):
    assert "5 of 100 parameters (5.0%)" in said
    assert "61 s" in said
    assert "1,234 tokens/s" in said
    for verb in ("predict --adapter out/demo", "eval --adapter out/demo", "merge --adapter out/demo"):
        assert f"  fw {verb}" in said


def test_the_settings_are_the_trainers():
    from featherweight.cli.demo_command import METHOD, SETTINGS, TASK
    from featherweight.methods import LoRA
    from featherweight.tasks import Classification
    from featherweight.train.settings import settings

    assert settings(SETTINGS).epochs == SETTINGS["epochs"]
    assert LoRA(**METHOD).rank == METHOD["rank"]
    assert Classification(**TASK).pool == "mean"


def test_an_earlier_demo_is_replaced_also_one_cut_short(tmp_path):
    from featherweight.cli.demo_command import MARK, clear, marked

    done, cut = tmp_path / "done", tmp_path / "cut"
    for folder in (done, cut):
        folder.mkdir()
    (done / MARK).write_text("{}")
    (cut / "half.txt").write_text("half")
    with pytest.raises(KeyboardInterrupt), marked(cut):
        raise KeyboardInterrupt
    clear(done)
    clear(cut)
    assert not done.exists()
    assert not cut.exists()

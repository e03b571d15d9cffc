"""Real signals to real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from featherweight.train.store import latest


def until(condition, process, seconds=60):
    """Wait for a condition while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.told.read_text()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


LONG = {"steps": 100, "batch": 4, "log": 1, "lr": 1e-2, "dropout": 0.1, "checkpoint_every": 1000}


@pytest.fixture(scope="module")
def whole(here, tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    here(folder, **LONG)
    return folder


def test_a_signal_finishes_the_step_saves_and_the_rest_gives_the_same_bits(launch, here, adapter, whole, tmp_path):
    process = launch(tmp_path, **LONG)
    until(lambda: lines(tmp_path) >= 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    step = latest(tmp_path / "checkpoints").step
    assert 5 <= step < 100
    process = launch(tmp_path, resume=True, **LONG)
    until(lambda: lines(tmp_path) > step + 3, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    here(tmp_path, resume=True, **LONG)
    ours, expected = adapter(tmp_path), adapter(whole)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(t, expected[k]) for k, t in ours.items())


SLOW = """
import sys, time
from featherweight.train.stop import Stop
with Stop() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_the_second_signal_ends_at_once():
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143
    assert time.monotonic() - began < 1
    process.stdout.close()


def test_handlers_are_put_back():
    from featherweight.train.stop import Stop

    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def killed_once(launch, folder, delay, **values):
    """A run killed `delay` seconds after its first line; the folder is then loadable or empty."""
    process = launch(folder, resume=folder.exists(), **values)
    until(lambda: lines(folder) > 0 or process.poll() is not None, process)
    time.sleep(delay)
    process.kill()
    process.wait()
    found = latest(folder / "checkpoints")
    assert found is None or not found.skipped
    assert len(list((folder / "checkpoints").glob(".*"))) <= 1
    return found


def test_sigkill_loses_at_most_an_interval(launch, here, adapter, whole, tmp_path):
    values = {**LONG, "checkpoint_every": 1}
    found = killed_once(launch, tmp_path / "out", 0.13, **values)
    assert found is not None
    assert 0 <= lines(tmp_path / "out") - found.step <= 1
    here(tmp_path / "out", resume=True, **values)
    ours, expected = adapter(tmp_path / "out"), adapter(whole)
    assert all(torch.equal(t, expected[k]) for k, t in ours.items())


@pytest.mark.sweep
def test_sigkill_sweep(launch, tmp_path):
    for nth in range(40):
        killed_once(launch, tmp_path / "out", 0.011 * nth, **{**LONG, "steps": 100_000, "checkpoint_every": 1})

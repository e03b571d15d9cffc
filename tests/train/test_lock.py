"""One run per output folder; a dead run's lock stops nobody."""

import os
import subprocess
import sys

import pytest

from featherweight.core.errors import InputError
from featherweight.train.lock import LOCK, locked
from featherweight.train.output import claim

HOLD = "import sys; from featherweight.train.lock import locked\nfrom pathlib import Path\nwith locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # noqa: E501


def test_a_second_run_is_refused_and_the_first_one_named(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(InputError, match=f"another run is writing.*process {os.getpid()}"),
        locked(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_killed_run_leaves_a_lock_that_stops_nobody(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match=f"process {run.pid}"), locked(tmp_path):
        pass
    run.kill()
    run.communicate()
    assert (tmp_path / LOCK).is_file()
    with claim(tmp_path, resume=False):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    from featherweight.train import lock

    real, opened = lock.taken, []

    def late(path):
        opened.append(real(path))
        if len(opened) == 1:
            path.unlink()  # its owner ends between our open and our lock
        return opened[-1]

    monkeypatch.setattr(lock, "taken", late)
    with locked(tmp_path):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), (tmp_path / LOCK).stat())


def test_a_run_that_comes_to_nothing_leaves_no_folder(tmp_path):
    out = tmp_path / "a/b"
    with pytest.raises(RuntimeError), claim(out, resume=False):
        raise RuntimeError
    assert not out.exists()
    out.mkdir()
    with pytest.raises(RuntimeError), claim(out, resume=False):
        raise RuntimeError
    assert out.is_dir()


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    import errno

    import featherweight as fw

    real = os.open

    def refuse(path, *given, **more):
        if str(path).endswith(LOCK):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\).*choose another output"):
        fw.train("no model", "no data", output=tmp_path / "o")
    assert not (tmp_path / "o").exists()

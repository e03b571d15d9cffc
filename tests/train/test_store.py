import errno
import json
import os
import random
import shutil

import pytest
import torch

from featherweight.train import store
from featherweight.train.store import CheckpointError, latest, save, verify

CALLS = ("open", "write", "fsync", "rename", "mkdir", "close", "unlink", "rmdir")


def tensors(step):
    return {
        "adapter": {"a": torch.full((3, 2), float(step)), "b": torch.arange(4)},
        "optimizer": {"a::step": torch.tensor(1.0)},
    }


def put(folder, step, **options):
    return save(folder, step, tensors(step), {"progress": {"step": step, "loss": 0.1 * step}}, **options)


def same(found, step):
    return (found.step == step and found.files["progress"] == {"step": step, "loss": 0.1 * step}
            and torch.equal(found.files["adapter"]["a"], tensors(step)["adapter"]["a"]))  # fmt: skip


def test_what_is_saved_comes_back(tmp_path):
    assert latest(tmp_path / "none") is None
    path = put(tmp_path, 3)
    assert path == tmp_path / "step-3"
    found = latest(tmp_path)
    assert same(found, 3)
    assert not found.skipped
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "progress.json",
    ]


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 8):
        put(tmp_path, step, keep=2, best=2)
    assert store.steps(tmp_path) == [7, 6, 2]


def test_nothing_is_deleted_before_the_new_one_reads_back(tmp_path, monkeypatch):
    put(tmp_path, 1, keep=1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda h, d: real(h, bytes(len(d))))  # a disk that stores zeros and says nothing
    with pytest.raises(CheckpointError, match="does not read back"):
        put(tmp_path, 2, keep=1)
    found = latest(tmp_path)
    assert same(found, 1)
    assert found.skipped[0].where == str(tmp_path / "step-2")


def test_files_are_durable_before_the_name_appears(tmp_path, monkeypatch):
    events = []
    for name in ("write", "fsync", "rename"):
        real = getattr(os, name)

        def spy(*given, real=real, name=name):
            where = os.readlink(f"/proc/self/fd/{given[0]}") if name != "rename" else str(given[1])
            events.append((name, os.path.basename(where)))
            return real(*given)

        monkeypatch.setattr(os, name, spy)
    put(tmp_path, 5)
    names = [e for e in events if e[0] != "write"]
    partial = f".partial-step-5-{os.getpid()}"
    synced = ["adapter.safetensors", "optimizer.safetensors", "progress.json", "manifest.json", partial]
    assert names == [*(("fsync", name) for name in synced), ("rename", "step-5"), ("fsync", tmp_path.name)]
    assert [e[1] for e in events if e[0] == "write"][-1] == "manifest.json"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_fault_at_any_call_of_a_save_leaves_the_old_checkpoint(tmp_path, monkeypatch, code):
    """Every open, write, fsync, rename, unlink ... of a save fails once; then a good save heals the folder."""
    put(tmp_path / "start", 1, keep=1)
    faults = 0
    for call in CALLS:
        for nth in range(100):
            folder = tmp_path / f"{call}-{nth}"
            shutil.copytree(tmp_path / "start", folder)
            if not fails(monkeypatch, folder, call, nth, code):
                break
            faults += 1
            found = latest(folder)
            assert same(found, found.step)
            assert found.step in (1, 2)
            put(folder, 3, keep=1)
            assert same(latest(folder), 3)
            assert [p.name for p in folder.iterdir()] == ["step-3"]  # no stray directory outlives the next save
    assert faults > 20


def fails(monkeypatch, folder, call, nth, code):
    """Save step 2 with the nth `call` failing; whether that call was reached."""
    real, seen = getattr(os, call), []

    def faulty(*given, **options):
        seen.append(given)
        if len(seen) == nth + 1:
            raise OSError(code, os.strerror(code))
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, faulty)
        if nth >= 99:
            pytest.fail("a save does not make a hundred calls")
        outcome = told(folder)
    assert outcome == "" or os.strerror(code) in outcome
    return len(seen) > nth


def told(folder):
    """What saving step 2 complains of, "" where it does not."""
    try:
        put(folder, 2, keep=1)
    except CheckpointError as error:
        return str(error)
    return ""


def test_too_little_space_is_found_before_anything_is_written(tmp_path, monkeypatch):
    put(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="the disk is full"):
        put(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_full_disk_in_earnest(tmp_path):
    """A limit on the size of files that the kernel enforces: the write itself fails."""
    import resource
    import signal

    put(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="earlier checkpoints are as they were"):
            save(tmp_path, 2, {"adapter": {"a": torch.zeros(5000)}}, {"progress": {}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert same(latest(tmp_path), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_every_damage_is_found_and_the_older_one_used(tmp_path):
    """Flips, truncations, growth and deletion of any file."""
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    chance = random.Random(0)
    files = {p: p.read_bytes() for p in path.iterdir()}
    for _ in range(150):
        target, kind = chance.choice(list(files)), chance.choice(["flip", "cut", "grow", "delete"])
        data = bytearray(files[target])
        if kind == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged = {
            "flip": bytes(data),
            "cut": bytes(data[: chance.randrange(len(data))]),
            "grow": bytes(data) + b" ",
        }.get(kind)
        target.unlink()
        if damaged is not None:
            target.write_bytes(damaged)
        assert verify(path), (target.name, kind)
        found = latest(tmp_path)
        assert same(found, 1)
        assert "step-2" in found.skipped[0].where
        target.write_bytes(files[target])
    assert verify(path) == ""


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (put(tmp_path, 1) / "progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        latest(tmp_path)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    (put(tmp_path, 1) / "progress.json").write_text("{}")
    put(tmp_path, 1)
    assert same(latest(tmp_path), 1)


def test_a_manifest_cannot_point_outside(tmp_path):
    path = put(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../other.json"] = manifest["files"].pop("progress.json")
    (path / "manifest.json").write_bytes(store.encode(manifest))
    assert "no file of this directory" in verify(path)

import pytest
import torch

from featherweight.core.errors import InputError
from featherweight.train.ranks import Ranks, chunks, ranks, split


def test_runs_are_of_almost_equal_length():
    assert split(range(7), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert split([1], 3) == [[1], [], []]
    assert [i for part in split(range(23), 4) for i in part] == list(range(23))


def test_tensors_of_one_dtype_go_together(monkeypatch):
    monkeypatch.setattr("featherweight.train.ranks.CHUNK", 5)
    given = [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2), torch.zeros(9)]
    assert [[t.numel() for t in c] for c in chunks(given)] == [[3, 2], [9], [2]]


def test_a_device_that_is_not_there_is_refused():
    missing = next(kind for kind in ("cuda", "mps") if not getattr(torch, kind).is_available())
    with pytest.raises(InputError, match="this machine has no such device"):
        ranks(missing)
    assert ranks("cpu") == Ranks(torch.device("cpu"))


def test_two_ranks_equal_one(launch, here, adapter, tmp_path):
    """The same command under torchrun, batches of 7 rows of uneven length, dev rows evaluated by both."""
    values = {"steps": 6, "batch": 7, "lr": 1.0, "optimizer": "sgd", "log": 1, "device": "cpu"}
    here(tmp_path / "one", **values)
    process = launch(tmp_path / "two", ranks=2, **values)
    assert process.wait(120) == 0, process.told.read_text()
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(float((t - two[k]).abs().max()) for k, t in one.items()) < 1e-6
    assert max(float(t.abs().max()) for k, t in one.items() if "lora_B" in k) > 1e-3
    assert (tmp_path / "two/metrics.jsonl").read_text().count("\n") == 6

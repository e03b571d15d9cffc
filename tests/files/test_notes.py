"""Notes of libraries on their own start are kept from the screen; everything else they log comes through."""

import logging

import pytest

from featherweight.files.notes import TOLD, hush, hushed


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    logging.getLogger("torchao").warning("Failed to load /x/_C_mxfp8.so: no CUDA here")
    logging.getLogger("torchao").warning("weights were not quantized")
    logging.getLogger("torch.utils._pytree").warning("%s is an Enum subclass and is now natively supported", "Kind")
    logging.getLogger("torch.utils._pytree").error("not a tree")
    found = [r.getMessage() for r in caplog.records]
    caplog.clear()
    return found


def test_only_the_notes_are_kept_back(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = logging.getLogger("torch.utils._pytree")
    monkeypatch.setattr(tree, "propagate", True)
    monkeypatch.setattr(tree, "handlers", [caplog.handler])
    tree.propagate = False
    assert len(said(caplog)) == 4
    with hushed():
        assert said(caplog) == ["weights were not quantized", "not a tree"]
    assert len(said(caplog)) == 4


def test_for_good_once() -> None:
    names = ("torchao", "torch.utils._pytree")
    try:
        hush()
        hush()
        with hushed():
            pass
        assert all(logging.getLogger(name).filters.count(TOLD) == 1 for name in names)
    finally:
        for name in names:
            logging.getLogger(name).removeFilter(TOLD)

"""Notes of libraries on their own start are kept from the screen; everything else they log comes through."""

import logging
from collections.abc import Iterator

import pytest

from featherweight.files.notes import NOTES, TOLD, hush, hushed


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """As in a process of its own: a command that ran in this one has hushed them for good."""
    kept = [logging.getLogger(name) for name in NOTES if TOLD in logging.getLogger(name).filters]
    for logger in kept:
        logger.removeFilter(TOLD)
    yield
    for logger in map(logging.getLogger, NOTES):
        logger.removeFilter(TOLD)
    for logger in kept:
        logger.addFilter(TOLD)


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
    hush()
    hush()
    with hushed():
        pass
    assert all(logging.getLogger(name).filters.count(TOLD) == 1 for name in NOTES)

"""Fixtures for every test: where the project's data lie, and one thread, so that parallel workers do not fight."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The development data; tests that need them skip, with the reason, where the folder is absent."""
    folder = Path(os.environ.get("FEATHERWEIGHT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder.name}: set FEATHERWEIGHT_DATA")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full product runs only when asked for: `make sweep`, that is FEATHERWEIGHT_TESTS=sweep."""
    if os.environ.get("FEATHERWEIGHT_TESTS") == "sweep":
        return
    kept = [item for item in items if "sweep" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "sweep" in item.keywords])
    items[:] = kept

"""The folder of the small models, and its scripts as modules."""

import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="session", autouse=True)
def scripts():
    sys.path.insert(0, str(HOME))
    yield
    sys.path.remove(str(HOME))


@pytest.fixture(scope="session")
def home() -> Path:
    return HOME

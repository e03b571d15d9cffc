"""A tiny encoder-decoder on disk, and folders of tasks as they come."""

import pytest
from support import fewshot as made


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    return made.tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def fewglue(tmp_path):
    return made.fewglue(tmp_path / "fewglue")


@pytest.fixture
def raft(tmp_path):
    return made.raft(tmp_path / "raft")


@pytest.fixture
def draws(tmp_path):
    return made.draws(tmp_path / "tfew")

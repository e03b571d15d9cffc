import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir():
    root = Path(os.environ.get("FEATHERWEIGHT_DATA") or Path(__file__).parents[2] / "../shared/data").resolve()
    if not root.is_dir():
        pytest.skip(f"no data at {root}")
    return root


@pytest.fixture(scope="session")
def stories(data_dir):
    """The tokenizer of stories260K: BOS, EOS, no pad token, no chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir / "stories260k/hf")


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file of the test's folder."""

    def put(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put

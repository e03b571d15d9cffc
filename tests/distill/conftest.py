"""One tokenizer and a few rows for all tests of distillation."""

from typing import Any

import pytest
from support.distilling import WORDS, words


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return words()


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    texts = [" ".join(WORDS[(i * 7 + k * 3) % 20] for k in range(2 + i % 5)) for i in range(24)]
    return [{"text": f"{t} {('bad', 'good')[i % 2]}", "label": ("no", "yes")[i % 2]} for i, t in enumerate(texts)]

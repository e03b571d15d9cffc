"""Small models on disk: the real stories260k (Llama, 512 tokens), and a BERT with a word-piece tokenizer made here."""

from pathlib import Path
from typing import Any

import pytest
from support.models import tiny

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "fast", "slow", "good", "bad", "is", "was", "not", "very"],
]


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Path:
    return data_dir / "stories260k" / "hf"


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer(str(folder / "vocab.txt"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT encoder without a task head, as on the hub: the head of any task is new."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-bert"
    tiny("bert").bert.save_pretrained(folder)
    bert_tokenizer(folder).save_pretrained(folder)
    return folder

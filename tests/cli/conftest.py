"""One tiny model, one table and one adapter for all command-line tests; commands run in this process."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from support.words import word_tokenizer

WORDS = [
    "name",
    "food",
    "area",
    "price",
    "near",
    "good",
    "bad",
    "cheap",
    "river",
    "city",
    "pub",
    "inn",
    "thai",
    "fast",
    "warm",
    "cold",
    "staff",
    "slow",
    "tasty",
    "dull",
]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.out.count("\n") == 1, f"not one line: {self.out!r}"
        return json.loads(self.out)


@pytest.fixture
def fw(capsys):
    """fw("eval", "--data", path) -> Result, in this process."""
    from featherweight.cli.main import main

    def run(*argv):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        got = capsys.readouterr()
        return Result(code, got.out, got.err)

    return run


@pytest.fixture
def process():
    """The same in a process of its own, with its environment changed."""

    def run(*argv, **env):
        done = subprocess.run([sys.executable, "-m", "featherweight.cli.main", *map(str, argv)], capture_output=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", **env}, timeout=120)  # fmt: skip
        return Result(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"))

    return run


@pytest.fixture(scope="session")
def words():
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def bert(tmp_path_factory, words):
    """A tiny encoder on disk, with its tokenizer."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(7)
    config = t.BertConfig(vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                          num_attention_heads=2, max_position_embeddings=64, hidden_dropout_prob=0.0,
                          attention_probs_dropout_prob=0.0)  # fmt: skip
    t.BertModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory, words):
    """A tiny decoder on disk, with its tokenizer."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(7)
    config = t.LlamaConfig(vocab_size=23,
                           hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                           max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=1)  # fmt: skip
    t.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A csv of 40 labelled rows with an extra column."""
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{i},{WORDS[i % 15]} {'good' if i % 2 else 'bad'} {WORDS[(3 * i) % 15]},{'yes' if i % 2 else 'no'}"
            for i in range(40)]  # fmt: skip
    file.write_text("number,text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, bert, table):
    """What `fw train` leaves behind when it is told a model and data and little else."""
    from featherweight.cli.main import main

    folder = tmp_path_factory.mktemp("run") / "adapter"
    argv = ["train", "--model", bert, "--data", table, "--output", folder, "--epochs", 6, "--lr", "1e-2", "--batch", 8]
    assert main([str(a) for a in argv]) == 0
    return folder

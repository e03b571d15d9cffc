"""Tiny models, rows and a runner of subprocesses for the training tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.words import word_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = "name food area price near good bad cheap river city pub inn thai fast warm cold staff slow tasty dull"
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def data_dir():
    place = Path(os.environ.get("FEATHERWEIGHT_DATA") or ROOT / "../shared/data")
    if not place.is_dir():
        pytest.skip(f"no data folder at {place}: set FEATHERWEIGHT_DATA")
    return place


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def make():
    """make("llama" | "bert", **config) -> a model with random weights, always the same ones."""
    import torch
    import transformers as t

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "vocab_size": 23, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip

    def build(kind, **config):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            if kind == "llama":
                given = {**small, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1, **config}
                return t.LlamaForCausalLM(t.LlamaConfig(**given))
            given = {**small, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **config}
            return t.BertForSequenceClassification(t.BertConfig(**given))

    return build


@pytest.fixture(scope="session")
def lm_rows():
    """A prompt of two to five words, a completion that repeats its first word: learnable, of uneven length."""
    return [{"prompt": " ".join(WORDS[(i * 7 + k * 3) % 20] for k in range(2 + i % 4)),
             "completion": " ".join([WORDS[(i * 7) % 20]] * (1 + i % 3))} for i in range(48)]  # fmt: skip


@pytest.fixture(scope="session")
def class_rows():
    mood = ("bad", "good")
    texts = [f"{WORDS[i % 15]} {mood[i % 2]} {WORDS[(3 * i) % 15]}" for i in range(40)]
    return [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def split():
    """split(rows, dev) -> Data whose last `dev` rows are the dev split."""
    from featherweight.data.load import Data, load

    def cut(rows, dev):
        whole = load(rows)
        n = len(whole.train) - dev
        return Data(train=whole.train[:n], valid=whole.train[n:], shape=whole.shape)

    return cut


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, make, tokenizer, lm_rows):
    """A folder with a tiny Llama, its tokenizer and rows.jsonl, for runs in subprocesses."""
    folder = tmp_path_factory.mktemp("tiny")
    make("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lm_rows))
    return folder


SCRIPT = """
import json, sys
import featherweight as fw
from featherweight.train import Stopped
folder, output, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
method = fw.LoRA(rank=4, dropout=values.pop("dropout", 0.0))
try:
    fw.train(folder, f"{folder}/rows.jsonl", fw.CausalLM(), method=method, output=output, threads=1, **values)
except Stopped as stopped:
    sys.exit(stopped.code)
"""


@pytest.fixture(scope="session")
def here(tiny_folder):
    """here(output, **settings): the run that `launch` launches, in this process."""

    def start(output, **values):
        import featherweight as fw

        method = fw.LoRA(rank=4, dropout=values.pop("dropout", 0.0))
        rows = f"{tiny_folder}/rows.jsonl"
        fw.train(str(tiny_folder), rows, fw.CausalLM(), method=method, output=output, threads=1, **values)

    return start


@pytest.fixture(scope="session")
def launch(tmp_path_factory, tiny_folder):
    """launch(output, ranks=1, **settings) -> a subprocess that trains the tiny Llama; what it says is in `.told`."""
    place = tmp_path_factory.mktemp("script")
    script = place / "run.py"
    script.write_text(SCRIPT)
    running = []

    def start(output, ranks=1, **values):
        head = [sys.executable]
        if ranks > 1:
            head += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
        command = [*head, str(script), str(tiny_folder), str(output), json.dumps(values)]
        told = place / f"{len(running)}.txt"
        with told.open("w") as file:
            process = subprocess.Popen(command, env=environment, stderr=file, stdout=subprocess.DEVNULL)
        process.told = told
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def adapter():
    """adapter(folder) -> the tensors of the adapter saved in it."""
    from safetensors.torch import load_file

    return lambda folder: load_file(Path(folder) / "adapter_model.safetensors")

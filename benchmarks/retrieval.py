"""banking77 as retrieval with MiniLM: which of the shots are of a question's intent, before and after LoRA on 10 shots.

    python benchmarks/retrieval.py                 every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/retrieval.py --method LoRA   contenders whose name contains a word

all       train on 10 shots of each of the 77 intents; the shots are the corpus, 10 test questions of each intent ask
unseen    train on the shots of 38 intents drawn by the seed; corpus and questions are of the 39 others

A result is relevant if it is of the question's intent. One pair per shot, drawn by the seed (`fw.pairs_by_label`), one
epoch in batches of 64, temperature 0.05. A contender has two rates; the one with the better MRR of dev questions
(other training texts, 5 of each intent) on "all" at seed 0 is kept for everything else. The peer is
sentence-transformers with peft's LoRA of the same size: MultipleNegativesRankingLoss of the same temperature (scale
20), its sampler without doubles in a batch, the same pairs, rate, schedule, clipping and number of steps.
"""

import argparse
import json
import random
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import _paired
import _real
import numpy as np

SHOTS, ASKED, DEV, EPOCHS, BATCH, SEEDS = 10, 10, 5, 1, 64, 3
SPLITS = ("all", "unseen")
RATES = {"before": (0.0,), "LoRA": (1e-3, 4e-3), "sentence-transformers": (1e-3, 4e-3)}
Texts = dict[str, list[str]]  # by intent


def material(seed: int) -> tuple[Texts, Texts, Texts]:
    """Shots and dev questions from the training file, test questions from the test file, by intent."""
    rng = random.Random(seed)
    held: dict[str, Texts] = {}
    for name in ("train", "test"):
        for row in _real.table(_paired.DATA / "banking77" / f"{name}.csv"):
            held.setdefault(name, {}).setdefault(row["category"], []).append(row["text"])
    drawn = {intent: rng.sample(texts, SHOTS + DEV) for intent, texts in sorted(held["train"].items())}
    asked = {intent: random.Random(0).sample(texts, ASKED) for intent, texts in sorted(held["test"].items())}
    return {i: t[:SHOTS] for i, t in drawn.items()}, {i: t[SHOTS:] for i, t in drawn.items()}, asked


def intents(split: str, seed: int, every: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those trained on, and those retrieved."""
    if split == "all":
        return list(every), list(every)
    seen = set(random.Random(1000 + seed).sample(list(every), len(every) // 2))
    return [i for i in every if i in seen], [i for i in every if i not in seen]


def scores(embed: Any, corpus: Texts, asked: Texts, held: Sequence[str]) -> dict[str, float]:
    from featherweight.tasks.retrieval import retrieval

    passages = [(i, text) for i in held for text in corpus[i]]
    queries = [(i, text) for i in held for text in asked[i]]
    place: dict[str, list[int]] = {}
    for number, (intent, _) in enumerate(passages):
        place.setdefault(intent, []).append(number)
    relevant = [place[intent] for intent, _ in queries]
    vectors = embed([text for _, text in [*queries, *passages]])
    found = retrieval(vectors[: len(queries)], vectors[len(queries) :], relevant)
    return {name: round(value, 4) for name, value in found.items()}


def pairs(shots: Texts, seen: Sequence[str], seed: int) -> list[Any]:
    import featherweight as fw
    from featherweight.data.types import Example

    return fw.pairs_by_label([Example(f"{i}:{n}", t, label=i) for i in seen for n, t in enumerate(shots[i])], seed)


def ours(found: list[Any], rate: float, seed: int) -> tuple[Any, dict[str, Any]]:
    import featherweight as fw
    from featherweight.data.pairs import rows_of

    model = fw.load_base(_real.minilm(), fw.Embedding())
    result: dict[str, Any] = {"seconds": 0.0, "trained": 0}
    if rate:
        run = fw.train(model, rows_of(found), fw.Embedding(), method=fw.LoRA(), epochs=EPOCHS, batch=BATCH, lr=rate,
                       seed=seed, warmup=0)  # fmt: skip
        result = {"seconds": round(run.seconds, 1), "trained": run.trainable, "steps": run.steps}
    return lambda texts: fw.embed(model, texts, batch=128), result


def peer(found: list[Any], rate: float, seed: int) -> tuple[Any, dict[str, Any]]:
    import sentence_transformers as st
    from datasets import Dataset
    from peft import LoraConfig
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import set_seed

    set_seed(seed)
    trunk = Transformer(_real.minilm())
    pooled = Pooling(trunk.get_embedding_dimension(), "mean")
    model = st.SentenceTransformer(modules=[trunk, pooled, Normalize()], device="cpu")
    model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    rows = Dataset.from_list([{"anchor": e.text, "positive": e.choices[0]} for e in found])
    with tempfile.TemporaryDirectory() as folder:
        arguments = st.SentenceTransformerTrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=rate,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=seed,
            batch_sampler="no_duplicates")  # fmt: skip
        loss = st.losses.MultipleNegativesRankingLoss(model, scale=20.0)
        trainer = st.SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
        done = trainer.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds = round(done.metrics["train_runtime"], 1)
    result = {"seconds": seconds, "trained": trained, "steps": done.global_step}
    return lambda texts: np.asarray(model.encode(texts, batch_size=128, show_progress_bar=False)), result


def one(split: str, label: str, rate: float, seed: int) -> dict[str, Any]:
    shots, dev, asked = material(seed)
    seen, held = intents(split, seed, list(shots))
    found = pairs(shots, seen, seed)
    embed, result = (peer if label == "sentence-transformers" else ours)(found, rate, seed)
    parts = {"test": asked} | ({"dev": dev} if split == "all" and seed == 0 else {})
    return result | {part: scores(embed, shots, questions, held) for part, questions in parts.items()}


def key(split: str, label: str, rate: float, seed: int) -> str:
    return f"{split}, {label}, lr {rate:g}, seed {seed}"


def kept(label: str, runs: dict[str, Any]) -> float | None:
    """The rate with the better MRR on dev at seed 0, once all are known."""
    tried = {rate: runs.get(key("all", label, rate, 0)) for rate in RATES[label]}
    if any(found is None for found in tried.values()):
        return None
    return max(tried, key=lambda rate: tried[rate]["dev"]["mrr"])  # type: ignore[index]


def due(runs: dict[str, Any], word: str) -> list[tuple[str, str, float, int]]:
    """What is to be run next: both rates, then the other seeds and the unseen intents with the one kept."""
    wanted = []
    for label in [label for label in RATES if word in label]:
        wanted += [("all", label, rate, 0) for rate in RATES[label]]
        rate = kept(label, runs)
        wanted += [] if rate is None else [(split, label, rate, s) for s in range(SEEDS) for split in SPLITS]
    return [w for w in wanted if key(*w) not in runs]


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation over seeds, and the mean of the paired gains over `before` with ± 2 standard errors."""
    made: dict[str, Any] = {}
    for split in SPLITS:
        start = {s: runs.get(key(split, "before", 0.0, s)) for s in range(SEEDS)}
        for label in RATES:
            rate = kept(label, runs)
            got = {} if rate is None else {s: runs.get(key(split, label, rate, s)) for s in range(SEEDS)}
            tests = {s: r["test"] for s, r in got.items() if r is not None and start[s] is not None}
            if not tests:
                continue
            cell: dict[str, Any] = {"rate": rate, "seeds": len(tests)}
            for metric in ("hit_rate@1", "hit_rate@5", "mrr", "ndcg@10"):
                values = [t[metric] for t in tests.values()]
                gains = [t[metric] - start[s]["test"][metric] for s, t in tests.items()]  # type: ignore[index]
                spread = [2 * statistics.stdev(gains) / len(gains) ** 0.5] if len(gains) > 1 else [None]
                cell[metric] = {"mean": statistics.mean(values), "gain": statistics.mean(gains), "interval": spread[0]}
            made.setdefault(split, {})[label] = cell
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    runs = _paired.load("retrieval").get("runs", {})
    while todo := due(runs, options.method):
        found = one(*todo[0])
        runs[key(*todo[0])] = found
        print(key(*todo[0]), json.dumps(found), flush=True)
        _paired.write("retrieval", {"machine": _paired.machine(), "shots": SHOTS, "epochs": EPOCHS, "batch": BATCH,
                                    "summary": summary(runs), "runs": runs})  # fmt: skip


if __name__ == "__main__":
    main()

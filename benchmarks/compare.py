"""Do I need to fine-tune at all? Prompts, frozen embeddings and adapters on the same real rows, with their costs.

    python benchmarks/compare.py              every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/compare.py --only trec  sets whose name contains a word

A few rows of each label are drawn by the seed; 200 rows ask, the same for all. MiniLM: logistic regression on frozen
embeddings against LoRA with a head. stories260k and our own T5 (models/tiny-t5): zero-shot, 4 and 16 examples in
context, drawn and nearest (by MiniLM), against an adapter that was trained to choose (LoRA; on T5 IA3). A method has
two rates; the one of the better accuracy on 100 other training rows at seed 0 is kept for all three seeds. Of sst2's
training phrases those of more than 40 characters are drawn from; the test rows are whole sentences.
"""

import argparse
import random
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import _paired
import _real

import featherweight as fw
from featherweight.baselines.comparison import Comparison

ASKED, DEV, SEEDS, BATCH = 200, 100, 3, 8
Rows = list[dict[str, str]]
# set -> rows of each label to learn from, epochs over them
SETS = {"sst2": (16, 20), "cr": (16, 20), "trec": (10, 12), "banking77": (5, 6)}
T5 = _paired.ROOT / "models" / "tiny-t5"
WORDS = {
    "sst2": {"0": "bad", "1": "good"}, "cr": {"0": "bad", "1": "good"}, "banking77": {},
    "trec": dict(zip("012345", ("meaning", "thing", "abbreviation", "person", "place", "number"), strict=True)),
}  # fmt: skip
# base -> method, its two rates
BASES: dict[str, tuple[Any, tuple[float, float]]] = {
    "minilm": (fw.LoRA(rank=16, alpha=32, targets="linear"), (1e-3, 3e-3)),
    "stories": (fw.LoRA(rank=8, alpha=16, targets="linear"), (1e-3, 5e-3)),
    "t5": (fw.IA3(), (3e-3, 1e-2)),
}
PROMPTED = {"stories": ("sst2", "cr"), "t5": ("sst2", "cr", "trec")}


def rows(name: str) -> tuple[Rows, Rows]:
    """(to learn from, to ask) of a set, all of them."""
    data, held = _paired.DATA, random.Random(0)
    if name == "sst2":
        found = _real.sst2(10**9)
        return [{"text": r["sentence"], "label": r["label"]} for r in found["train"] if len(r["sentence"]) > 40], [
            {"text": r["sentence"], "label": r["label"]} for r in found["test"]
        ]
    if name == "banking77":
        return tuple(
            [{"text": r["text"], "label": r["category"]} for r in _real.table(data / "banking77" / f"{part}.csv")]
            for part in ("train", "test")
        )  # type: ignore[return-value]
    if name == "trec":
        return lines(data / "sentconv" / "TREC.train.all"), lines(data / "sentconv" / "TREC.test.all")
    every = lines(data / "sentconv" / "custrev.all")
    held.shuffle(every)
    return every[1000:], every[:1000]


def lines(file: Path) -> Rows:
    """`label text` to a line."""
    parts = (line.split(" ", 1) for line in file.read_text(encoding="latin-1").splitlines())
    return [{"text": text, "label": label} for label, text in parts]


def material(name: str, seed: int) -> dict[str, Rows]:
    """train: rows of each label drawn by the seed; dev: others; test: the same for every seed."""
    known, asked = rows(name)
    order = random.Random(seed).sample(known, len(known))
    by_label: dict[str, Rows] = {}
    for row in order:
        by_label.setdefault(row["label"], []).append(row)
    train = [row for label in sorted(by_label) for row in by_label[label][: SETS[name][0]]]
    rest = [row for row in order if row not in train]
    return {"train": train, "dev": rest[:DEV], "test": random.Random(0).sample(asked, ASKED)}


def folder(base: str) -> str:
    return {"minilm": _real.minilm, "stories": _real.stories, "t5": lambda: str(T5)}[base]()


def tuned(base: str, name: str, data: dict[str, Rows], rate: float, seed: int, output: Path) -> float:
    """Train one adapter into `output`; its accuracy on the dev rows."""
    method, _ = BASES[base]
    common = {"method": method, "output": output, "lr": rate, "seed": seed, "batch": BATCH, "epochs": SETS[name][1]}
    if base == "minilm":
        task: Any = fw.Classification(pool="mean")
        fw.train(folder(base), {"train": data["train"]}, task, **common)
        return float(fw.evaluate(fw.load_model(output), data["dev"])["accuracy"])
    task = fw.Seq2SeqChoices() if base == "t5" else fw.Choices()
    labels = sorted({row["label"] for row in data["train"]})
    parts = {part: fw.as_choices(data[part], labels, words=WORDS[name]) for part in ("train", "dev")}
    plain = [{"prompt": e.text, "choices": list(e.choices), "label": e.label} for e in parts["train"]]
    fw.train(folder(base), {"train": plain}, task, **common)
    return float(fw.evaluate(fw.load_model(output), parts["dev"], task)["accuracy"])


def one(base: str, name: str, rate: float, seed: int, whole: bool) -> dict[str, Any]:
    """Train and, where `whole`, compare."""
    data = material(name, seed)
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / type(BASES[base][0]).__name__
        found: dict[str, Any] = {"dev": round(tuned(base, name, data, rate, seed, output), 4)}
        if whole:
            prompts = (
                {} if base == "minilm" else {"shots": (0, 4, 16), "embedder": _real.minilm(), "words": WORDS[name]}
            )
            made = fw.compare(folder(base), data["train"], data["test"], adapters=[output], seed=seed, **prompts)
            found |= shown(made)
    return found


def shown(made: Comparison) -> dict[str, Any]:
    """The comparison without its rows, and each line's difference to the best untuned."""
    whole = made.to_dict()
    return {"lines": whole["lines"], "advice": whole["advice"], "rows": whole["rows"]}


def kept(base: str, runs: dict[str, Any]) -> float | None:
    """The rate of the better dev accuracy at seed 0, the first of equals."""
    tried = {rate: runs.get(f"rate {rate:g}") for rate in BASES[base][1]}
    known = {rate: found["dev"] for rate, found in tried.items() if found}
    return max(known, key=known.__getitem__) if len(known) == len(tried) else None


def due(base: str, runs: dict[str, Any]) -> tuple[str, float, int, bool] | None:
    """(key, rate, seed, whole) of the next run, None where all are done."""
    for rate in BASES[base][1]:
        if f"rate {rate:g}" not in runs:
            return f"rate {rate:g}", rate, 0, False
    best = kept(base, runs)
    assert best is not None
    left = [seed for seed in range(SEEDS) if f"seed {seed}" not in runs]
    return (f"seed {left[0]}", best, left[0], True) if left else None


def summary(base: str, runs: dict[str, Any]) -> dict[str, Any]:
    """By line: mean score and cost over the seeds; of the adapter its difference to the best untuned line of each seed,
    with the paired interval of each."""
    done = [runs[f"seed {s}"] for s in range(SEEDS) if f"seed {s}" in runs]
    if not done:
        return {}
    found: dict[str, Any] = {"seeds": len(done), "rate": kept(base, runs), "lines": {}}
    for i, line in enumerate(done[0]["lines"]):
        cells = [run["lines"][i] for run in done]
        one_: dict[str, Any] = {"kind": line["kind"], "score": round(statistics.mean(c["score"] for c in cells), 4)}
        one_["seeds"] = [round(c["score"], 4) for c in cells]
        for key in ("training_flops", "query_flops", "disk_bytes", "trained"):
            one_[key] = statistics.mean(c[key] for c in cells)
        one_["pays_back"] = [c["pays_back"] for c in cells]
        if line["kind"] == "tuned":
            one_["to_best_untuned"] = [c["to_best_untuned"] for c in cells]
        found["lines"][line["name"]] = one_
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--base", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    runs = _paired.load("compare").get("runs", {})
    for base, name in [(base, name) for name in SETS for base in BASES if name in PROMPTED.get(base, SETS)]:
        if options.only not in name or options.base not in base:
            continue
        mine = runs.setdefault(f"{base} {name}", {})
        while (todo := due(base, mine)) is not None:
            key, rate, seed, whole = todo
            mine[key] = one(base, name, rate, seed, whole)
            print(base, name, key, mine[key].get("advice", mine[key]["dev"]), flush=True)
            done = {cell: summary(cell.split()[0], found) for cell, found in runs.items()}
            _paired.write("compare", {"machine": _paired.machine(), "asked": ASKED, "batch": BATCH,
                                      "sets": SETS, "summary": done, "runs": runs})  # fmt: skip


if __name__ == "__main__":
    main()

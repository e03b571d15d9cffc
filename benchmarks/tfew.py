"""T-Few on tiny-t5: what each of its losses gives, and (IA)3 beside LoRA, prompt tuning, all weights and no training.

    python benchmarks/tfew.py                  every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/tfew.py --only intents   tasks whose name contains a word

Ten tasks (_fewshot.py), 32 rows each, T-Few's five seeds; the recipe with 300 of its 1,000 steps: Adafactor, 8 rows a
step, 6 % warm-up, linear decay. Rates are T-Few's and the methods' papers', none is tuned: (IA)3 and LoRA 3e-3, prompt
tuning 0.3 (Lester et al. 2021), all weights 1e-3. LoRA has AdamW: Adafactor's steps are relative to a tensor's size,
and B begins at 0. Differences are paired: the same rows, the same seeds; their intervals are a bootstrap over seeds
and rows. "pre-trained" starts from an (IA)3 trained on the mixture for 300 steps.
"""

import argparse
import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import _paired
import numpy as np
from _fewshot import SEEDS, TASKS, Rows
from _rowwise import interval

ROOT = _paired.ROOT
MODEL = ROOT / "models" / "tiny-t5"
STEPS, WARMUP, LENGTH, SHOTS = 300, 18, 256, 4
# label -> method (None: no training), rate, weights of the losses
RUNS: dict[str, tuple[str | None, float, dict[str, float]]] = {
    "IA3": ("IA3", 3e-3, {}),
    "IA3, no L_UL": ("IA3", 3e-3, {"unlikelihood": 0.0}),
    "IA3, no L_LN": ("IA3", 3e-3, {"normalized": 0.0}),
    "IA3, neither": ("IA3", 3e-3, {"unlikelihood": 0.0, "normalized": 0.0}),
    "LoRA": ("LoRA", 3e-3, {}),
    "prompt tuning": ("Prompt", 0.3, {}),
    "all weights": ("Full", 1e-3, {}),
    "in context": (None, 0.0, {}),
    "untouched": (None, 0.0, {}),
    "IA3, pre-trained": ("IA3", 3e-3, {}),
}
OPTIMIZERS = {"LoRA": "adamw"}
OPTIONS: dict[str, dict[str, Any]] = {"LoRA": {"rank": 4}, "Prompt": {"tokens": 10}}


def one(base: Any, label: str, seed: int, train: Rows, test: Rows, start: Path) -> str:
    """Which rows of `test` are answered right, a digit for each."""
    import featherweight as fw

    model, (kind, rate, weights) = copy.deepcopy(base), RUNS[label]
    task = fw.Seq2SeqChoices(**weights)
    if label == "in context":
        test = fw.in_context(model, test, train, SHOTS, select="balanced", task=task, seed=seed, length=LENGTH)
    if kind is not None:
        method = getattr(fw, kind)(**OPTIONS.get(kind, {}))
        if label == "IA3, pre-trained":
            fw.load(model, started(base, start), train=True)
            method = None
        fw.train(model, train, task, recipe="tfew", method=method, steps=STEPS, warmup=WARMUP, lr=rate, seed=seed,
                 optimizer=OPTIMIZERS.get(kind, "adafactor"), length=LENGTH, buckets=False,
                 tokenizer=base.tokenizer)  # fmt: skip
    right = [int(r["label"]) for r in rows_of(test)]
    said = fw.predict(model, test, fw.Seq2SeqChoices(), tokenizer=base.tokenizer, length=LENGTH)
    return "".join(str(int(a["label"] == b)) for a, b in zip(said, right, strict=True))


def rows_of(test: Any) -> list[dict[str, Any]]:
    return [r if isinstance(r, dict) else {"label": r.label} for r in test]


def started(base: Any, folder: Path) -> Path:
    """(IA)3 on prompts of the mixture that have choices, by T-Few's losses; made once."""
    import featherweight as fw

    if not (folder / "adapter_config.json").is_file():
        sys.path.insert(0, str(ROOT / "models"))
        from mixture import Mixture

        items = [i for i in Mixture(_paired.DATA, "train").items(9000, 2) if i.choices][:4800]
        rows = [{"text": i.prompt, "choices": list(i.choices), "label": i.choices.index(i.answer)} for i in items]
        fw.train(copy.deepcopy(base), rows, fw.Seq2SeqChoices(), recipe="tfew", method=fw.IA3(), steps=300, batch=16,
                 warmup=18, length=LENGTH, buckets=False, tokenizer=base.tokenizer, output=folder,
                 resume=folder.is_dir())  # fmt: skip
    return folder


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """By task: chance, and for each way the mean accuracy over seeds and its difference to (IA)3 with its interval."""
    found: dict[str, Any] = {}
    for name, mine in runs.items():
        cells = {label: {s: hits(r) for s, r in seeds.items()} for label, seeds in mine["right"].items()}
        found[name] = {"rows": mine["rows"], "chance": mine["chance"], "commonest": mine["commonest"]}
        for label, by_seed in cells.items():
            cell: dict[str, Any] = {"seeds": len(by_seed), "accuracy": mean([h.mean() for h in by_seed.values()])}
            both = sorted(set(by_seed) & set(cells.get("IA3", {})))
            if label != "IA3" and both:
                cell |= difference(np.stack([by_seed[s] - cells["IA3"][s] for s in both]))
            found[name][label] = cell
    return found | {"all": over_tasks(runs)}


def over_tasks(runs: dict[str, Any]) -> dict[str, Any]:
    """The mean over the tasks (two or more) that every way has in all seeds; intervals draw seeds and tasks anew."""
    whole = [n for n, m in runs.items() if all(len(m["right"].get(label, {})) == len(SEEDS) for label in RUNS)]
    found: dict[str, Any] = {"tasks": whole}
    if len(whole) < 2:
        return found
    table = {label: np.array([[hits(runs[n]["right"][label][str(s)]).mean() for s in SEEDS] for n in whole])
             for label in RUNS}  # fmt: skip
    for label, values in table.items():
        found[label] = {"accuracy": mean(values)}
        if label != "IA3":
            found[label] |= difference((values - table["IA3"]).T)
    return found


def hits(right: str) -> Any:
    return np.array([float(c) for c in right])


def mean(values: Any) -> float:
    return round(float(np.mean(values)), 4)


def difference(gaps: Any) -> dict[str, Any]:
    """Mean of (seeds, rows) differences and its interval."""
    low, high = interval(gaps, np.ones(gaps.shape[1]))
    return {"to_ia3": mean(gaps), "interval": [round(low, 4), round(high, 4)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--way", default="", help="ways whose name contains this")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "featherweight-tfew")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    import featherweight as fw

    base = fw.load_base(str(MODEL), fw.Seq2SeqChoices())
    digest = json.loads((MODEL / "record.json").read_text())["sha256"]
    stored = _paired.load("tfew")
    runs = stored.get("runs", {}) if stored.get("model") == digest else {}
    start = options.work / digest[:12]
    for name in [t for t in TASKS if options.only in t]:
        for seed in SEEDS:
            train, test = TASKS[name](seed)
            mine = runs.setdefault(name, described(test))
            for label in [way for way in RUNS if options.way in way]:
                done = mine["right"].setdefault(label, {})
                if str(seed) not in done:
                    done[str(seed)] = one(base, label, seed, train, test, start)
                    print(f"{name}, {label}, seed {seed}: {mean(hits(done[str(seed)]))}", flush=True)
                    _paired.write("tfew", {"model": digest, "steps": STEPS, "machine": _paired.machine(),
                                           "summary": summary(runs), "runs": runs})  # fmt: skip


def described(test: Rows) -> dict[str, Any]:
    """The number of rows, one in so many choices, and the share of the commonest answer."""
    answers = [row["choices"][int(row["label"])] for row in test]
    return {"rows": len(test), "chance": mean([1 / len(row["choices"]) for row in test]),
            "commonest": mean(max(answers.count(a) for a in set(answers)) / len(answers)), "right": {}}  # fmt: skip


if __name__ == "__main__":
    main()

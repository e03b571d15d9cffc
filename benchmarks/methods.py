"""Every method on the same real rows: which of the published orderings hold here, with seeds and intervals.

    python benchmarks/methods.py                   every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/methods.py --only rte        tasks whose name contains a word
    python benchmarks/methods.py --method LoRA     methods whose name contains a word

MiniLM on sst2, rte and banking77: 150 steps of 16 rows for each run. A method has two rates, its default and four times
that (the budget is a twentieth of the papers'); the one with the better dev accuracy at seed 0 is kept, and two more
seeds follow. Only the kept rate enters the summary. rte has no labeled test set: its dev rows are split in two; there
everything stays at chance in so few steps, and methods have their default rate alone.
banking77's fresh head of 77 rows has a rate of its own, the same for all: the one that a head alone keeps. "one rate"
is the task without that.
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real

STEPS, BATCH, LENGTH, SEEDS = 150, 16, 128, 3
TASKS = {"sst2": None, "rte": None, "banking77": 4e-2, "banking77, one rate": None}  # -> the head's rate
# label -> class, options; "peft" runs peft's LoRA of the same size with transformers' Trainer
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Full": ("Full", {}), "Head": ("Head", {}), "BitFit": ("BitFit", {}), "LayerNorm": ("LayerNorm", {}),
    "LoRA": ("LoRA", {}), "LoRA, all linear": ("LoRA", {"targets": "linear"}),
    "LoRA, rank-stabilized": ("LoRA", {"rank_stabilized": True}), "LoRA+": ("LoRA", {"lr_ratio": 16.0}),
    "LoRA-FA": ("LoRA", {"freeze_A": True}), "PiSSA": ("LoRA", {"init": "pissa"}), "EVA": ("LoRA", {"init": "eva"}),
    "DoRA": ("DoRA", {}), "AdaLoRA": ("AdaLoRA", {}), "VeRA": ("VeRA", {}), "IA3": ("IA3", {}),
    "Scaling, rank 4": ("Scaling", {"rank": 4}), "Houlsby": ("Houlsby", {}), "Pfeiffer": ("Pfeiffer", {}),
    "Lin": ("Lin", {}), "Parallel": ("Parallel", {"reduction": 16}), "Compacter": ("Compacter", {}),
    "Prompt": ("Prompt", {"tokens": 20}), "Prefix": ("Prefix", {}), "DeepPrompt": ("DeepPrompt", {}),
    "LlamaAdapter": ("LlamaAdapter", {}), "FishMask": ("FishMask", {}), "Intrinsic": ("Intrinsic", {}),
    "peft LoRA": ("peft", {}),
}  # fmt: skip


def made(label: str) -> Any:
    import featherweight as fw

    kind, options = METHODS[label]
    return fw.LoRA() if kind == "peft" else getattr(fw, kind)(**options)


# A head alone takes more than its default, which must also suit blocks below it: at 4e-3 it stays near its start.
OWN = {"Head": (1e-2, 4e-2)}


def rates(task: str, label: str) -> tuple[float, ...]:
    lr = made(label).lr
    both = OWN.get(label, (lr, 4 * lr))
    return both[:1] if task == "rte" else both


def one(task_name: str, label: str, rate: float, seed: int) -> dict[str, Any]:
    """One run in this process."""
    import transformers as tf

    tf.set_seed(seed)
    data = getattr(_real, task_name.split(",")[0])(STEPS * BATCH)
    head = None if label == "Head" else TASKS[task_name]
    model, task = _real.classifier(data, seed)
    tokenizer = model.tokenizer
    if METHODS[label][0] == "peft":
        from peft import LoraConfig

        rows = _real.encoded(data, task, tokenizer, LENGTH)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
        result, model = _real.train_peft(model, rows, config, tokenizer, "", BATCH, head, max_steps=STEPS,
                                         learning_rate=rate, seed=seed)  # fmt: skip
    else:
        result = _real.train_ours(model, data, task, made(label), steps=STEPS, batch=BATCH, lr=rate, seed=seed,
                                  head_lr=head, length=LENGTH, tokenizer=tokenizer)  # fmt: skip
    return result | _real.scores(model, data, task, tokenizer, ("valid", "test"))


def key(label: str, rate: float, seed: int) -> str:
    return f"{label} lr {rate:g} seed {seed}"


def kept(task: str, label: str, runs: dict[str, Any]) -> float | None:
    """The rate with the better dev accuracy at seed 0, once all are known."""
    tried = {rate: runs.get(key(label, rate, 0)) for rate in rates(task, label)}
    if any(result is None for result in tried.values()):
        return None
    return max(tried, key=lambda rate: tried[rate].get("valid_accuracy", -1.0))  # type: ignore[union-attr]


def due(task: str, runs: dict[str, Any], word: str) -> list[tuple[str, float, int]]:
    """What is to be run next: first both rates of every method, then the seeds of those kept."""
    labels = [label for label in METHODS if word in label]
    wanted = [(label, rate, 0) for label in labels for rate in rates(task, label)]
    for label in labels:
        rate = kept(task, label, runs)
        wanted += [(label, rate, seed) for seed in range(1, SEEDS)] if rate is not None else []
    return [w for w in wanted if key(*w) not in runs]


def summary(task: str, runs: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation by method, and the paired difference to LoRA over the seeds both have, ± 2 standard errors."""
    found: dict[str, Any] = {}
    mine = {label: seeds_of(task, label, runs) for label in METHODS}
    for label, by_seed in mine.items():
        if not by_seed:
            continue
        values = [r["test_accuracy"] for r in by_seed.values()]
        first = next(iter(by_seed.values()))
        cell = {"rate": kept(task, label, runs), "seeds": len(values), "trained": first["trained"],
                "dev": round(statistics.mean(r["valid_accuracy"] for r in by_seed.values()), 4),
                "test": round(statistics.mean(values), 4),
                "std": round(statistics.stdev(values), 4) if len(values) > 1 else None}  # fmt: skip
        pairs = [r["test_accuracy"] - mine["LoRA"][s]["test_accuracy"] for s, r in by_seed.items() if s in mine["LoRA"]]
        if len(pairs) > 1 and label != "LoRA":
            error = 2 * statistics.stdev(pairs) / len(pairs) ** 0.5
            cell |= {"to_lora": round(statistics.mean(pairs), 4), "interval": round(error, 4)}
        found[label] = cell
    return found


def seeds_of(task: str, label: str, runs: dict[str, Any]) -> dict[int, Any]:
    rate = kept(task, label, runs)
    got = {s: runs.get(key(label, rate, s)) for s in range(SEEDS)} if rate is not None else {}
    return {s: r for s, r in got.items() if r is not None and "error" not in r}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--method", default="")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.one:
        task, label, rate, seed = options.one
        print(json.dumps(one(task, label, float(rate), int(seed))))
        return
    runs = _paired.load("methods").get("runs", {})
    for task in [t for t in TASKS if options.only in t]:
        mine = runs.setdefault(task, {})
        while todo := due(task, mine, options.method):
            label, rate, seed = todo[0]
            try:
                found = _paired.child(__file__, "--one", task, label, repr(rate), str(seed))
            except RuntimeError as error:  # a run that diverges is a finding
                found = {"error": str(error).strip().splitlines()[-1]}
            mine[key(*todo[0])] = found
            print(task, key(*todo[0]), json.dumps(found), flush=True)
            means = {t: summary(t, r) for t, r in runs.items()}
            _paired.write("methods", {"machine": _paired.machine(), "steps": STEPS, "batch": BATCH, "summary": means,
                                      "runs": runs})  # fmt: skip


if __name__ == "__main__":
    main()

"""Quality on real data next to peft's LoRA: mean and deviation over three seeds, failures reported as they are.

    python benchmarks/quality.py                   every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/quality.py --only banking77  tasks whose name contains a word
    python benchmarks/quality.py --budget 100      optimizer steps of a classification run (default 200)

sst2 and banking77 with MiniLM, six methods and peft's LoRA: each has two learning rates, the one with the better dev
score at seed 0 is kept, and two more seeds follow: four runs of the same length for each. Test scores are only read for
the kept rate. e2e_nlg with stories260k at rates that are given: 250 steps of batch 16, dev loss in nats per token.
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real

RATES = {
    "Full": (5e-5, 3e-4), "Head": (1e-2, 5e-2), "BitFit": (1e-3, 5e-3), "LayerNorm": (1e-3, 5e-3),
    "LoRA": (5e-4, 2e-3), "IA3": (3e-3, 1e-2), "peft LoRA": (5e-4, 2e-3),
}  # fmt: skip
WRITERS = {"LoRA": 5e-3, "Full": 2e-3, "peft LoRA": 5e-3}
BATCH, LENGTH, SEEDS = 32, 128, 3
STEPS = 250  # of e2e_nlg, batch 16


def one(task_name: str, method: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One run in this process."""
    import transformers as tf

    tf.set_seed(seed)
    writes = task_name == "e2e_nlg"
    batch = 16 if writes else BATCH
    data = getattr(_real, task_name)(steps * batch if writes else 10**9)
    model, task = _real.writer("stories", seed) if writes else _real.classifier(data, seed)
    data["train"] = data["train"] if len(data["train"]) <= steps * batch else data["train"][: steps * batch]
    if method.startswith("peft"):
        rows = _real.encoded(data, task, model.tokenizer, LENGTH * 2 if writes else LENGTH)
        tokenizer = model.tokenizer
        result, model = _real.train_peft(model, rows, peft_config(writes), tokenizer, "", batch, max_steps=steps,
                                         learning_rate=rate, seed=seed)  # fmt: skip
    else:
        tokenizer = model.tokenizer
        result = _real.train_ours(model, data, task, ours(method, writes), steps=steps, batch=batch, lr=rate, seed=seed,
                                  length=LENGTH * 2 if writes else LENGTH, tokenizer=tokenizer)  # fmt: skip
    return result | _real.scores(model, data, task, tokenizer, ("valid",) if writes else ("valid", "test"))


def ours(method: str, writes: bool) -> Any:
    import featherweight as fw

    if method == "LoRA":
        return fw.LoRA(rank=8, alpha=16, targets="linear" if writes else ("query", "value"))
    return getattr(fw, method)()


def peft_config(writes: bool) -> Any:
    from peft import LoraConfig

    if writes:
        return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    return LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")


def plan(task: str, runs: dict[str, Any]) -> list[tuple[str, float, int]]:
    """The (method, rate, seed) that are due, as far as it can be told now."""
    if task == "e2e_nlg":
        due = [(m, rate, seed) for seed in range(SEEDS) for m, rate in WRITERS.items()]
        return [d for d in due if key(*d) not in runs]
    due = [(m, rate, 0) for m, rates in RATES.items() for rate in rates]
    for method in RATES:
        rate = kept(method, runs)
        due += [(method, rate, seed) for seed in range(1, SEEDS)] if rate is not None else []
    return [d for d in due if key(*d) not in runs]


def key(method: str, rate: float, seed: int) -> str:
    return f"{method} lr {rate:g} seed {seed}"


def kept(method: str, runs: dict[str, Any]) -> float | None:
    """The rate with the better dev accuracy at seed 0, once both are known."""
    tried = {rate: runs.get(key(method, rate, 0)) for rate in RATES[method]}
    if any(result is None for result in tried.values()):
        return None
    return max(tried, key=lambda rate: tried[rate].get("valid_accuracy", -1.0))  # type: ignore[union-attr]


def summary(task: str, runs: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for method in WRITERS if task == "e2e_nlg" else RATES:
        rate = WRITERS[method] if task == "e2e_nlg" else kept(method, runs)
        results = [
            runs[key(method, rate, s)] for s in range(SEEDS) if rate is not None and key(method, rate, s) in runs
        ]
        good = [r for r in results if "error" not in r]
        if not results:
            continue
        found[method] = {"rate": rate, "seeds": len(good), "failed": len(results) - len(good)}
        for metric in ("valid_loss", "valid_accuracy", "test_accuracy"):
            values = [r[metric] for r in good if metric in r]
            if values:
                spread = round(statistics.stdev(values), 4) if len(values) > 1 else None
                found[method][metric] = {"mean": round(statistics.mean(values), 4), "std": spread}
        if good:
            found[method]["trained"] = good[0]["trained"]
    return found


def attempt(task: str, method: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """The run's result, or its error: a run that diverges is a finding."""
    try:
        return _paired.child(__file__, "--one", task, method, repr(rate), str(seed), str(steps))  # type: ignore[no-any-return]
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.one:
        task, method, rate, seed, steps = options.one
        print(json.dumps(one(task, method, float(rate), int(seed), int(steps))))
        return
    result = {} if options.fresh else _paired.load("quality")
    runs = result.get("runs", {})
    if result.get("budget", options.budget) != options.budget:
        raise SystemExit(f"the JSON has runs of {result['budget']} steps: give --budget {result['budget']} or --fresh")
    for task in [t for t in ("e2e_nlg", "sst2", "banking77") if options.only in t]:
        mine = runs.setdefault(task, {})
        while due := plan(task, mine):
            steps = STEPS if task == "e2e_nlg" else options.budget
            mine[key(*due[0])] = attempt(task, *due[0], steps)
            print(task, key(*due[0]), json.dumps(mine[key(*due[0])]), flush=True)
            done = {t: summary(t, r) for t, r in runs.items()}
            _paired.write("quality", {"machine": _paired.machine(), "budget": options.budget, "batch": BATCH,
                                      "summary": done, "runs": runs})  # fmt: skip


if __name__ == "__main__":
    main()

"""Is QLoRA within noise of LoRA? The same adapter, rate, rows, order and steps over a float base and over an NF4 one.

    python benchmarks/qlora_quality.py             every run that is not in the JSON yet, 12 of about a minute each
    python benchmarks/qlora_quality.py --only sst2 tasks whose name contains a word
    python benchmarks/qlora_quality.py --seeds 5   more seeds

e2e_nlg with stories260k (LoRA on all linear layers, dev loss in nats per token) and sst2 with MiniLM (LoRA on all
linear layers, dev and test accuracy). The base of QLoRA is NF4, block 64, double quantization. Runs are paired by seed:
the difference is QLoRA - LoRA with its 95 % t interval over seeds, beside the deviation of LoRA's own seeds.
`unadapted` is what the number format alone costs: the loss of the base before training, in each format (e2e_nlg).
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real

TASKS = {
    "e2e_nlg": {"rate": 5e-3, "steps": 250, "batch": 16, "length": 256, "metrics": ("valid_loss",)},
    "sst2": {"rate": 2e-3, "steps": 200, "batch": 32, "length": 128, "metrics": ("valid_accuracy", "test_accuracy")},
}
ARMS = ("LoRA", "QLoRA")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by number of seeds


def one(name: str, arm: str, seed: int) -> dict[str, Any]:
    """One run in this process."""
    import transformers as tf

    import featherweight as fw

    plan: dict[str, Any] = TASKS[name]
    tf.set_seed(seed)
    data = getattr(_real, name)(plan["steps"] * plan["batch"])
    model, task = _real.writer("stories", seed) if name == "e2e_nlg" else _real.classifier(data, seed)
    tokenizer, splits = model.tokenizer, tuple(m.split("_")[0] for m in plan["metrics"])
    if arm == "QLoRA":
        fw.quantize(model, nf4())
    before = _real.scores(model, data, task, tokenizer, splits) if name == "e2e_nlg" else {}
    result = _real.train_ours(model, data, task, fw.LoRA(rank=8, alpha=16, targets="linear"), steps=plan["steps"],
                              batch=plan["batch"], lr=plan["rate"], seed=seed, length=plan["length"],
                              tokenizer=tokenizer)  # fmt: skip
    found = _real.scores(model, data, task, tokenizer, splits)
    return result | found | {f"unadapted_{k}": v for k, v in before.items()}


def nf4() -> Any:
    from featherweight.quant import NF4

    return NF4(block=64, double=True)


def summary(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    seeds = sorted({int(k.rsplit(" ", 1)[1]) for k in runs})
    whole = [s for s in seeds if all(f"{arm} seed {s}" in runs for arm in ARMS)]
    found: dict[str, Any] = {"seeds": len(whole)}
    for metric in TASKS[name]["metrics"] if whole else ():  # type: ignore[attr-defined]
        values = {arm: [runs[f"{arm} seed {s}"][metric] for s in whole] for arm in ARMS}
        found[metric] = {arm: round(statistics.mean(v), 4) for arm, v in values.items()}
        if len(whole) > 1:
            apart = [q - p for p, q in zip(values["LoRA"], values["QLoRA"], strict=True)]
            half = T95[len(whole)] * statistics.stdev(apart) / len(whole) ** 0.5
            middle, noise = statistics.mean(apart), statistics.stdev(values["LoRA"])
            found[metric] |= {
                "difference": round(middle, 4), "interval": [round(middle - half, 4), round(middle + half, 4)],
                "interval_holds_0": abs(middle) <= half, "deviation_of_LoRA": round(noise, 4),
                "within_a_deviation": abs(middle) <= noise,
            }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.one:
        name, arm, seed = options.one
        print(json.dumps(one(name, arm, int(seed))))
        return
    result = {} if options.fresh else _paired.load("qlora_quality")
    runs = result.get("runs", {})
    for seed in range(options.seeds):
        for name in [n for n in TASKS if options.only in n]:
            mine = runs.setdefault(name, {})
            for arm in ARMS:
                if (key := f"{arm} seed {seed}") not in mine:
                    mine[key] = _paired.child(__file__, "--one", name, arm, str(seed))
                    print(name, key, json.dumps(mine[key]), flush=True)
                    done = {n: summary(n, r) for n, r in runs.items()}
                    _paired.write("qlora_quality", {"machine": _paired.machine(), "summary": done, "runs": runs})
    print(json.dumps({n: summary(n, r) for n, r in runs.items()}, indent=1))


if __name__ == "__main__":
    main()

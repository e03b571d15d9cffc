"""A whole run on real rows, ours against peft with transformers' Trainer: useful tokens per second and the dev score.

    python benchmarks/run.py                 all workloads, contenders and seeds; goes on where it stopped
    python benchmarks/run.py --only sst2     workloads whose name contains a word
    python benchmarks/run.py --seeds 1       fewer seeds

Useful tokens are real tokens, not padding. Both sides see the same rows, rate, schedule, optimizer and epochs, each
in a fresh process, in turn. Contenders: ours at its defaults (length buckets), ours packed (language models), peft at
Trainer's defaults, peft with group_by_length, peft with flattened batches (language models; fewer, block-diagonal
rows).
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORKLOADS: dict[str, dict[str, Any]] = {
    "sst2-minilm": {"rows": 4800, "batch": 32, "lr": 1e-3, "metric": "valid_accuracy"},
    "e2e-stories260k": {"rows": 2400, "batch": 16, "lr": 5e-3, "metric": "valid_loss"},
    "e2e-llama110m": {"rows": 320, "batch": 16, "lr": 5e-4, "metric": "valid_loss"},
}
CONTENDERS = {
    "sst2-minilm": ["featherweight", "peft", "peft-grouped"],
    "e2e-stories260k": ["featherweight", "featherweight-packed", "peft", "peft-grouped", "peft-packed"],
    "e2e-llama110m": ["featherweight", "featherweight-packed", "peft", "peft-grouped", "peft-packed"],
}
LENGTH = 256


def one(workload: str, contender: str, seed: int) -> dict[str, Any]:
    """One run in this process."""
    import transformers as tf

    import featherweight as fw

    plan = WORKLOADS[workload]
    tf.set_seed(seed)
    if workload == "sst2-minilm":
        data = _real.sst2(plan["rows"])
        model, task = _real.classifier(data, seed)
    else:
        data = _real.e2e_nlg(plan["rows"])
        data["valid"] = data["valid"][:200]
        model, task = _real.writer("llama" if "llama" in workload else "stories", seed)
    tokenizer = model.tokenizer
    rows = _real.encoded(data, task, tokenizer, LENGTH)
    side, _, variant = contender.partition("-")
    if side == "featherweight":
        method = fw.LoRA(rank=8, alpha=16, targets="linear")
        packing = {"packing": True} if variant else {}
        result = _real.train_ours(model, data, task, method, epochs=1, batch=plan["batch"], lr=plan["lr"], seed=seed,
                                  length=LENGTH, tokenizer=tokenizer, **packing)  # fmt: skip
    else:
        result, model = _real.train_peft(model, rows, peft_config(workload), tokenizer, variant, plan["batch"],
                                         num_train_epochs=1, learning_rate=plan["lr"], seed=seed)  # fmt: skip
    result["useful_tokens_per_second"] = round(_real.tokens(rows) / result["seconds"], 1)
    return result | _real.scores(model, data, task, tokenizer, ("valid",))


def peft_config(workload: str) -> Any:
    from peft import LoraConfig

    if workload == "sst2-minilm":
        return LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"], task_type="SEQ_CLS",
                          exclude_modules=".*pooler.*")  # fmt: skip
    return LoraConfig(r=8, lora_alpha=16, target_modules=ALL)


def summary(runs: dict[str, dict[str, Any]], metric: str) -> dict[str, Any]:
    """Medians over seeds, ratios paired by seed, and the spread of the dev metric."""
    speed: dict[str, dict[str, float]] = {}
    dev: dict[str, list[float]] = {}
    for key, result in runs.items():
        contender, seed = key.rsplit(" seed ", 1)
        speed.setdefault(contender, {})[seed] = result["useful_tokens_per_second"]
        dev.setdefault(contender, []).append(result[metric])
    found: dict[str, Any] = {}
    for contender, by_seed in speed.items():
        found[contender] = {
            "useful_tokens_per_second": round(statistics.median(by_seed.values()), 1), metric: dev[contender],
            "mean": round(statistics.mean(dev[contender]), 4),
            "std": round(statistics.stdev(dev[contender]), 4) if len(by_seed) > 1 else None,
        }  # fmt: skip
    for ours in [c for c in speed if c.startswith("featherweight")]:
        for peer in [c for c in speed if c.startswith("peft")]:
            ratios = [speed[ours][s] / speed[peer][s] for s in speed[ours] if s in speed[peer]]
            if ratios:
                found[ours][f"times_{peer}"] = round(statistics.median(ratios), 3)
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
        workload, contender, seed = options.one
        print(json.dumps(one(workload, contender, int(seed))))
        return
    result = {} if options.fresh else _paired.load("run")
    runs = result.get("runs", {})
    for workload in [w for w in WORKLOADS if options.only in w]:
        mine = runs.setdefault(workload, {})
        for seed in range(options.seeds):
            for contender in CONTENDERS[workload][:: 1 if seed % 2 == 0 else -1]:
                key = f"{contender} seed {seed}"
                if key not in mine:
                    mine[key] = _paired.child(__file__, "--one", workload, contender, str(seed))
                    print(workload, key, json.dumps(mine[key]), flush=True)
                    done = {w: summary(r, WORKLOADS[w]["metric"]) for w, r in runs.items() if r}
                    _paired.write(
                        "run", {"machine": _paired.machine(), "workloads": WORKLOADS, "summary": done, "runs": runs}
                    )


if __name__ == "__main__":
    main()

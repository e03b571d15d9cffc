"""LoRA on real texts next to peft's LoRA and to full fine-tuning: mean and deviation over three seeds.

    python benchmarks/quality.py    every run that is not in the JSON yet; stop it and go on at will

e2e_nlg with stories260k: 250 steps of batch 16 at rates that are given, LoRA of rank 8 on all linear layers; dev loss
in nats per token. A run that fails is reported as it is. Methods beside one another: methods.py (classification) and
rank.py.
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real

RATES = {"LoRA": 5e-3, "Full": 2e-3, "peft LoRA": 5e-3}
STEPS, BATCH, LENGTH, SEEDS = 250, 16, 256, 3


def one(method: str, seed: int) -> dict[str, Any]:
    """One run in this process."""
    import transformers as tf

    tf.set_seed(seed)
    data = _real.e2e_nlg(STEPS * BATCH)
    model, task = _real.writer("stories", seed)
    rate, tokenizer = RATES[method], model.tokenizer
    if method == "peft LoRA":
        from peft import LoraConfig

        rows = _real.encoded(data, task, tokenizer, LENGTH)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        result, model = _real.train_peft(model, rows, config, tokenizer, "", BATCH, max_steps=STEPS,
                                         learning_rate=rate, seed=seed)  # fmt: skip
    else:
        result = _real.train_ours(model, data, task, ours(method), steps=STEPS, batch=BATCH, lr=rate, seed=seed,
                                  length=LENGTH, tokenizer=tokenizer)  # fmt: skip
    return result | _real.scores(model, data, task, tokenizer, ("valid",))


def ours(method: str) -> Any:
    import featherweight as fw

    return fw.LoRA(rank=8, alpha=16, targets="linear") if method == "LoRA" else fw.Full()


def key(method: str, seed: int) -> str:
    return f"{method} seed {seed}"


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """By method: how many seeds ended well, and the mean and deviation of their dev loss."""
    found = {}
    for method, rate in RATES.items():
        ran = [runs[key(method, s)] for s in range(SEEDS) if key(method, s) in runs]
        good = [r for r in ran if "error" not in r]
        if good:
            values = [r["valid_loss"] for r in good]
            std = round(statistics.stdev(values), 4) if len(values) > 1 else None
            found[method] = {"rate": rate, "seeds": len(good), "failed": len(ran) - len(good),
                             "trained": good[0]["trained"],
                             "valid_loss": {"mean": round(statistics.mean(values), 4), "std": std}}  # fmt: skip
    return found


def attempt(method: str, seed: int) -> dict[str, Any]:
    """The run's result, or its error: a run that diverges is a finding."""
    try:
        return _paired.child(__file__, "--one", method, str(seed))  # type: ignore[no-any-return]
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.one:
        method, seed = options.one
        print(json.dumps(one(method, int(seed))))
        return
    runs = {} if options.fresh else _paired.load("quality").get("runs", {})
    for seed in range(SEEDS):
        for method in RATES:
            if key(method, seed) not in runs:
                runs[key(method, seed)] = attempt(method, seed)
                print(key(method, seed), json.dumps(runs[key(method, seed)]), flush=True)
                _paired.write("quality", {"machine": _paired.machine(), "steps": STEPS, "batch": BATCH,
                                          "summary": summary(runs), "runs": runs})  # fmt: skip


if __name__ == "__main__":
    main()

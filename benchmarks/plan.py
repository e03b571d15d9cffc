"""Planned against measured memory of training, each run in a process of its own.

    python benchmarks/plan.py                every run not in the JSON yet, about 15 s each; stop and go on at will
    python benchmarks/plan.py --only gpt2    runs whose name contains a word
    python benchmarks/plan.py --plan         plan the runs of the JSON anew; what was measured stays

Shapes of MiniLM, GPT-2 and a 12-layer Llama x fp32, bf16 and NF4 x recomputing on and off x two lengths with LoRA on
all linear layers; Houlsby's adapters at the longer length.
Measured is the peak of resident memory over three steps, less what the process had after its imports and a step of a
tiny model of the same kind (which loads what the first step loads). Nothing in the planner is fitted to any of these.
"""

import argparse
import gc
import itertools
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import _paired

LENGTHS = {"minilm": (16, (64, 128)), "gpt2": (4, (128, 256)), "llama": (4, (128, 256))}  # rows, tokens
METHODS = ("lora", "houlsby")
FORMATS = ("fp32", "bf16", "nf4")
WHOLE = list(itertools.product(LENGTHS, METHODS, FORMATS, (False, True), (0, 1)))
GRID = [cell for cell in WHOLE if cell[1] == "lora" or cell[3:] == (False, 1)]


def config(kind: str, tiny: bool = False) -> Any:
    import transformers as tf

    wide, deep, heads = {"minilm": (384, 6, 12), "gpt2": (768, 12, 12), "llama": (768, 12, 12)}[kind]
    if tiny:
        wide, deep, heads = 64, 2, 2
    if kind == "minilm":
        return tf.BertConfig(hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=deep,
                             num_attention_heads=heads, architectures=["BertForSequenceClassification"])  # fmt: skip
    if kind == "gpt2":
        return tf.GPT2Config(n_embd=wide, n_layer=deep, n_head=heads, architectures=["GPT2LMHeadModel"])
    return tf.LlamaConfig(vocab_size=32000, hidden_size=wide, intermediate_size=8 * wide // 3, num_hidden_layers=deep,
                          num_attention_heads=heads, max_position_embeddings=512,
                          architectures=["LlamaForCausalLM"])  # fmt: skip


def nouns(method: str, kind: str) -> tuple[Any, Any]:
    import featherweight as fw

    made = fw.LoRA(rank=8, targets="linear") if method == "lora" else fw.Houlsby(reduction=16)
    return made, fw.NF4(double=True) if kind == "nf4" else None


def values(rows: int, length: int, kind: str, recompute: bool) -> dict[str, Any]:
    precision = "fp32" if kind == "fp32" else "bf16"
    return {"batch": rows, "length": length, "precision": precision, "checkpointing": recompute}


def train(form: Any, method: Any, scheme: Any, options: dict[str, Any], steps: int, settled: Any = None) -> None:
    """Steps as `fw.train` makes them, on random weights. `settled` is called when the model stands."""
    import torch

    import featherweight as fw
    from featherweight.plan import training
    from featherweight.plan.plan import subject
    from featherweight.train.optimizers import optimizer, parameters
    from featherweight.train.settings import settings
    from featherweight.train.setup import adapted, conditions

    torch.manual_seed(0)
    chosen = settings(options)
    about = subject(form, chosen)
    task = about.task
    model = training_model(form, task, options["precision"])
    if scheme is not None:
        fw.quantize(model, scheme)
    trained = adapted(model, method, "default", 0)
    if settled is not None:
        settled()
    with conditions(model, chosen):
        rule = optimizer("adamw", list(trained.values()), None, 0.0)
        rows = about.batch(chosen)
        for _ in range(steps):
            with training.arithmetic(options["precision"]):
                loss, _ = task.loss(model, rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters(rule), 1.0)
            rule.step()
            rule.zero_grad(set_to_none=True)


def training_model(form: Any, task: Any, precision: str) -> Any:
    import torch
    import transformers

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    form = type(form).from_dict(form.to_dict() | task.model_options())
    return getattr(transformers, task.auto).from_config(form, dtype=dtype)


def measured(kind: str, method: str, number: str, recompute: bool, at: int) -> dict[str, Any]:
    """Bytes of resident memory that the run adds at its peak, and the base line."""
    import featherweight as fw

    rows, lengths = LENGTHS[kind]
    made, scheme = nouns(method, number)
    options = values(rows, lengths[at], number, recompute)
    _paired.threads()
    train(config(kind, tiny=True), made, scheme, options | {"length": 32}, 2)
    gc.collect()
    base = _paired.status("VmRSS")

    def settled() -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")

    train(config(kind), made, scheme, options, 3, settled)
    peak = _paired.status("VmHWM") - base
    planned = fw.plan(config(kind), made, scheme, **options)
    return {"measured": peak, "planned": planned.train_bytes, "ratio": round(planned.train_bytes / peak, 4),
            "base_line": base}  # fmt: skip


def per_product() -> dict[str, float]:
    """Bytes that stay after a bfloat16 product of a new shape, its tensors gone: the mean over 40 other shapes."""
    import random

    import torch

    _paired.threads()
    draw = random.Random(1)

    def products(count: int) -> int:
        before = _paired.status("RssAnon")
        for _ in range(count):
            m, k, n = draw.randrange(256, 2048), draw.choice([8, 128, 320, 512]), draw.choice([8, 256, 640, 1000])
            x, w = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
            torch.nn.functional.linear(x, w)
        gc.collect()
        return _paired.status("RssAnon") - before

    products(3)
    return {"bytes_per_product": round(products(40) / 40)}


def planned(cell: Any) -> int:
    """The plan of a run, in this process."""
    import featherweight as fw

    kind, method, number, recompute, at = cell
    rows, lengths = LENGTHS[kind]
    made, scheme = nouns(method, number)
    return int(fw.plan(config(kind), made, scheme, **values(rows, lengths[at], number, recompute)).train_bytes)


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    off = sorted(abs(r["ratio"] - 1) for r in runs.values())
    within = sum(o <= 0.1 for o in off)
    middle, worst = round(statistics.median(off), 4), round(off[-1], 4)
    return {"runs": len(off), "within_10_percent": within, "median_off": middle, "worst_off": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--plan", action="store_true", help="plan the runs of the JSON anew; what was measured stays")
    parser.add_argument("--product", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        kind, method, number, recompute, at = options.one
        print(json.dumps(measured(kind, method, number, recompute == "True", int(at))))
        return
    if options.product:
        print(json.dumps(per_product()))
        return
    runs = {} if options.fresh else _paired.load("plan").get("runs", {})
    kept = _paired.child(__file__, "--product", env=_paired.ALLOCATOR)
    for cell in GRID:
        kind, method, number, recompute, at = cell
        name = f"{kind} {method} {number} {'recompute' if recompute else 'keep'} {LENGTHS[kind][1][at]}"
        if name in runs and options.plan:
            runs[name] |= {"planned": (bytes_ := planned(cell)), "ratio": round(bytes_ / runs[name]["measured"], 4)}
        elif options.only not in name or name in runs:
            continue
        else:
            runs[name] = _paired.child(__file__, "--one", *map(str, cell), env=_paired.ALLOCATOR)
        print(name, {k: v for k, v in runs[name].items() if k != "memory"}, flush=True)
        _paired.write("plan", {"machine": _paired.machine(), **kept, "summary": summary(runs), "runs": runs})


if __name__ == "__main__":
    main()

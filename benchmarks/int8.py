"""A LoRA training step over an int8 base (LLM.int8()) against one over the bf16 base: time, and what it learns.

    python benchmarks/int8.py --speed               steps at 1,024 tokens, two Llama shapes, peft beside; some minutes
    python benchmarks/int8.py --quality             stories260k on e2e_nlg, three seeds; some minutes
    python benchmarks/int8.py --only 768 --rounds 3 one shape, briefly

Both sides have LoRA of rank 8 on all linear layers in float32, the same fused functions and the same optimizer; only
the base differs. Targets: <= 0.80 of the bf16 step on the 2048-wide shape of 4 layers, <= 0.95 on the 768-wide one of
12; dev loss of the int8 base within the spread over seeds of the float base.
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import _real
import torch

SHAPES = {"llama-2048": (2048, 5632, 4, 16), "llama-768": (768, 2048, 12, 12)}  # width, mlp, layers, heads
BASES = ("int8", "int8-exact", "bf16")
SEEDS = (0, 1, 2)


def base(shape: str) -> Any:
    import transformers as tf

    width, mlp, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=32000, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
                            num_attention_heads=heads, max_position_embeddings=1024)  # fmt: skip
    return tf.LlamaForCausalLM(config).to(torch.bfloat16).train()


def batch(rows: int = 4, length: int = 256) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 32000, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def scheme(kind: str) -> Any:
    import featherweight as fw

    return fw.LLMInt8(backward="exact" if kind.endswith("exact") else "int8")


def ours(shape: str, kind: str) -> Any:
    import featherweight as fw
    from featherweight.kernels import fuse

    model = base(shape)
    if kind.startswith("int8"):
        fw.quantize(model, scheme(kind))
    fw.attach(model, fw.LoRA(rank=8, alpha=16, targets="linear"), head=False)
    fuse(model)
    return _paired.stepper(model, _paired.tasks_loss(fw.CausalLM(), model, batch()))


def peft(shape: str) -> Any:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base(shape), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    data = batch()
    return _paired.stepper(model, lambda: model(**data).loss)


def speed(shape: str, rounds: int, with_peft: bool) -> dict[str, Any]:
    """Times of all, and the ratios of the int8 base to every other."""
    steps = {kind: ours(shape, kind) for kind in BASES} | ({"peft-bf16": peft(shape)} if with_peft else {})
    return _paired.compare(_paired.paired(steps, rounds), ours="int8")


def curve(kind: str, seed: int, data: Any) -> dict[str, Any]:
    """A run on e2e_nlg over a float, an int8 or an int8-exact base: the loss by step (means of 25) and on dev rows."""
    import featherweight as fw

    model, task = _real.writer("stories", seed)
    if kind != "float":
        fw.quantize(model, scheme(kind))
    run = fw.train(model, {"train": data["train"]}, task, method=fw.LoRA(rank=8, alpha=16, targets="linear"), steps=250,
                   lr=5e-3, batch=16, length=256, seed=seed, warmup=0, best=False)  # fmt: skip
    dev = fw.evaluate(model, {"train": data["valid"]}, task, tokenizer=model.tokenizer, split="train")
    steps = [float(row["loss"]) for row in run.history if "loss" in row]
    losses = [round(statistics.mean(steps[i : i + 25]), 4) for i in range(0, len(steps), 25)]
    return {"dev_loss": round(float(dev["loss"]), 4), "losses": losses}


def quality(done: dict[str, Any]) -> dict[str, Any]:
    data = _real.e2e_nlg(4000)
    for seed in SEEDS:
        for kind in ("float", "int8", "int8-exact"):
            name = f"{kind}-{seed}"
            if name not in done:
                done[name] = curve(kind, seed, data)
                print(name, json.dumps(done[name]), flush=True)
                save(quality=done)
    dev = {kind: [done[f"{kind}-{s}"]["dev_loss"] for s in SEEDS] for kind in ("float", "int8", "int8-exact")}
    spread = max(dev["float"]) - min(dev["float"])
    apart = {k: round(statistics.mean(v) - statistics.mean(dev["float"]), 4) for k, v in dev.items() if k != "float"}
    return done | {"summary": {"dev_loss": dev, "spread_of_float": round(spread, 4), "mean_less_float": apart}}


def save(**parts: Any) -> None:
    _paired.write("int8", _paired.load("int8") | {"machine": _paired.machine()} | parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--no-peft", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    both = not options.speed and not options.quality
    known = {} if options.fresh else _paired.load("int8")
    if options.speed or both:
        cells = known.get("speed", {})
        for shape in [s for s in SHAPES if options.only in s]:
            cells[shape] = speed(shape, options.rounds, not options.no_peft)
            print(shape, json.dumps(cells[shape]), flush=True)
            save(speed=cells)
    if options.quality or both:
        found = quality({k: v for k, v in known.get("quality", {}).items() if k != "summary"})
        print(json.dumps(found["summary"]))
        save(quality=found)


if __name__ == "__main__":
    main()

"""Quantization-aware training against rounding afterwards, at equal budgets: stories260k on TinyStories.

    python benchmarks/qat.py                  all cells that are not in the JSON yet; stop it and go on at will
    python benchmarks/qat.py --only "2 bits"  cells whose name contains a word, anew

Every contender trains the same model for the same steps on the same batches in the same order; what is measured is the
model in codes, in nats per token on held-out text (the last fifth of the sample), the mean over three seeds.

    rounded            full fine-tuning in floats, then rounded to nearest        mse   its ranges cut first
    straight-through   QAT on the absmax grid                                     LSQ           QAT with learned steps
    LoRA rounded       LoRA of rank 8 in floats, merged, rounded                  LoRA aware    LoRA below QAT

"LSQ mse" begins its steps where the error is least. Grids are Absmax per row, on every linear layer of the blocks.
Targets: QAT better than rounding at 4, 3 and 2 bits.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import _paired
import _real
import torch
from quant_quality import WINDOW, nats, text

import featherweight as fw
from featherweight.methods import Full, LoRA
from featherweight.quant import QAT, Absmax

STEPS, BATCH, SEEDS = 100, 8, (0, 1, 2)
RATE = {"full": 5e-4, "low": 5e-3}  # one for every contender, not tuned


@cache
def training_text() -> torch.Tensor:
    """All of the sample but its last fifth: (windows, 1 + WINDOW) token ids."""
    tokenizer = fw.load_base(_real.stories(), fw.CausalLM()).tokenizer
    ids = torch.tensor(tokenizer(text("tinystories train"), add_special_tokens=False, verbose=False).input_ids)
    ids = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return torch.cat([torch.full((len(ids), 1), tokenizer.bos_token_id), ids], 1)


def trained(seed: int, rate: str, attach: Callable[[Any], Any]) -> Any:
    """The model after so many steps of AdamW under a linear schedule, with its adapters on."""
    model = attach(fw.load_base(_real.stories(), fw.CausalLM())).train()
    windows, noise = training_text(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE[rate], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        ids = windows[torch.randint(len(windows), (BATCH,), generator=noise)]
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def measured(model: Any) -> float:
    return round(nats(model, "tinystories"), 4)


def rounded(model: Any, bits: tuple[int, ...]) -> dict[str, float]:
    """A float model's nats at every width, rounded to nearest and with its ranges cut."""
    found = {"floats": measured(model)}
    for width in bits:
        for name, clip in ((f"{width} bits", None), (f"{width} bits mse", "mse")):
            copy = deepcopy(model)
            fw.quantize(copy, Absmax(bits=width, clip=clip))
            found[name] = measured(copy)
    return found


def low(model: Any) -> Any:
    return fw.attach(model, LoRA(rank=8, alpha=16, targets="linear"), name="low")


def aware(bits: int, learned: bool, clip: str | None = None) -> Callable[[Any], Any]:
    return lambda m: fw.attach(m, QAT(scheme=Absmax(bits=bits, clip=clip), learned_scale=learned, targets="linear"))


def low_aware(bits: int) -> Callable[[Any], Any]:
    method = QAT(scheme=Absmax(bits=bits), weights=False)
    return lambda m: fw.attach(low(m), method, name="round", stack=True)


def converted(model: Any) -> dict[str, float]:
    """Nats of the model in training and of its codes."""
    return {"in training": measured(model), "codes": measured(fw.convert(model))}


CELLS: dict[str, Callable[[int], dict[str, float]]] = {
    "rounded": lambda seed: rounded(fw.merge(trained(seed, "full", lambda m: fw.attach(m, Full()))), (4, 3, 2)),
    "LoRA rounded": lambda seed: rounded(fw.merge(trained(seed, "low", low)), (4, 3, 2)),
}
for width in (4, 3, 2):
    CELLS |= {
        f"straight-through {width} bits": lambda s, b=width: converted(trained(s, "full", aware(b, False))),
        f"LSQ {width} bits": lambda s, b=width: converted(trained(s, "full", aware(b, True))),
        f"LSQ mse {width} bits": lambda s, b=width: converted(trained(s, "full", aware(b, True, "mse"))),
        f"LoRA aware {width} bits": lambda s, b=width: converted(trained(s, "low", low_aware(b))),
    }


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Mean and spread over seeds, one row for each width."""
    table: dict[str, Any] = {}
    for width in (4, 3, 2):
        row: dict[str, list[float]] = {}
        for name, key in (("rounded", f"{width} bits"), ("rounded mse", f"{width} bits mse"),
                          ("LoRA rounded", f"{width} bits"), ("LoRA rounded mse", f"{width} bits mse")):  # fmt: skip
            row[name] = [c[key] for s in SEEDS if (c := cells.get(f"{name.removesuffix(' mse')}, seed {s}"))]
        for name in ("straight-through", "LSQ", "LSQ mse", "LoRA aware"):
            row[name] = [c["codes"] for s in SEEDS if (c := cells.get(f"{name} {width} bits, seed {s}"))]
        table[f"{width} bits"] = {
            n: {"mean": round(statistics.mean(v), 4), "spread": round(max(v) - min(v), 4)} for n, v in row.items() if v
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    _paired.threads()
    cells = _paired.load("qat").get("cells", {})
    before = measured(fw.load_base(_real.stories(), fw.CausalLM()))
    for seed in SEEDS[: options.seeds]:
        for name, run in CELLS.items():
            key = f"{name}, seed {seed}"
            if key in cells and not (options.only and options.only in name):
                continue
            if options.only in name:
                cells[key] = run(seed)
                print(key, json.dumps(cells[key]), flush=True)
                result = {"steps": STEPS, "batch": BATCH, "untrained floats": before, "cells": cells}
                _paired.write("qat", {"machine": _paired.machine()} | result | {"nats": summary(cells)})
    print(json.dumps(summary(cells), indent=1))


if __name__ == "__main__":
    main()

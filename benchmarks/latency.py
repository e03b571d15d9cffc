"""What an adapter costs when it serves, and what a training step of each method costs: ratios within one run.

    python benchmarks/latency.py                   both, goes on where it stopped
    python benchmarks/latency.py --only forward    or step; parts whose name contains a word
    python benchmarks/latency.py --fresh           measure again

forward: a random GPT-2 shape (12 layers, 384 wide), batch 1 and 16, 16 to 128 tokens, against the bare base. The
bottlenecks have the shares of the width that LoRA's table 1 has on GPT-2 medium: Lin b d/128 and 7d/32, Houlsby 7d/64.
step: MiniLM, 8 rows of 16 tokens, forward, backward and AdamW, as `fw.train` runs it, against full fine-tuning.
Rounds are interleaved; a ratio is the median over rounds with its quartiles. One thread, and its own CPU time rather
than the clock's, so that neighbors count less.
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import _paired
import methods
import torch

import featherweight as fw

WIDTH, LAYERS, WORDS = 384, 12, 1000
SHAPES = {(1, 16): 15, (1, 64): 9, (1, 128): 9, (16, 16): 5, (16, 64): 3, (16, 128): 3}  # (batch, length): rounds
ROWS, TOKENS, ROUNDS = 8, 16, 5
SERVED: dict[str, Any] = {
    "LoRA, merged": lambda: fw.LoRA(), "LoRA": lambda: fw.LoRA(), "LoRA, all linear": lambda: fw.LoRA(targets="linear"),
    "Lin, b d/128": lambda: fw.Lin(bottleneck=WIDTH // 128), "Lin, b 7d/32": lambda: fw.Lin(bottleneck=7 * WIDTH // 32),
    "Houlsby, b 7d/64": lambda: fw.Houlsby(bottleneck=7 * WIDTH // 64), "IA3": lambda: fw.IA3(),
    "Prompt, 20 tokens": lambda: fw.Prompt(tokens=20), "Prefix, 20 tokens": lambda: fw.Prefix(tokens=20),
}  # fmt: skip
ALIKE = ("LoRA, rank-stabilized", "LoRA+", "PiSSA", "EVA", "peft LoRA")  # LoRA's step, or another's


def gpt2() -> Any:
    import transformers as tf

    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=6, n_positions=256,
                                            bos_token_id=0, eos_token_id=0)).eval()  # fmt: skip


def served() -> dict[str, Any]:
    """The base, and a copy of it under each adapter."""
    found = {"base": gpt2()}
    for name, made in SERVED.items():
        model = fw.attach(copy.deepcopy(found["base"]), made(), head=False).eval()
        found[name] = fw.merge(model) if name.endswith("merged") else model
    return found


def forward(done: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Cells of (batch, length): each contender's time over the base's."""
    due = [(*shape, rounds) for shape, rounds in SHAPES.items() if name_of(*shape) not in done]
    models = served() if due else {}
    for batch, length, rounds in due:
        ids = torch.randint(3, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            calls = {name: lambda m=m, ids=ids: m(input_ids=ids) for name, m in models.items()}
            times = _paired.paired(calls, rounds, 1, time.process_time)
        yield name_of(batch, length), against("base", times)


def name_of(batch: int, length: int) -> str:
    return f"{batch} x {length}"


def against(peer: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Of each contender the median and the quartiles of time / the peer's, over rounds."""
    found: dict[str, Any] = {"seconds": round(statistics.median(times[peer]), 5), "rounds": len(times[peer])}
    for name in times:
        if name != peer:
            low, middle, high = statistics.quantiles(
                [a / b for a, b in zip(times[name], times[peer], strict=True)], n=4
            )
            found[name] = {"ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def trainer(label: str) -> Callable[[], Any]:
    """A call that trains MiniLM by one step of a method."""
    import _real

    from featherweight.kernels import fuse

    task = fw.Classification(labels=("0", "1"))
    model = fw.load_base(_real.minilm(), task, seed=0).train()
    ids = torch.randint(1000, 30000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % 2}
    fw.attach(model, methods.made(label))
    fw.prepare(model, [batch])
    fuse(model)
    return _paired.stepper(model, _paired.tasks_loss(task, model, batch))  # type: ignore[no-any-return]


def step(done: Collection[str]) -> Iterator[tuple[str, Any]]:
    """One cell: a step of every method over that of full fine-tuning, and what each trains."""
    if "MiniLM" in done:
        return
    steps = {label: trainer(label) for label in methods.METHODS if label not in ALIKE}
    found = against("Full", _paired.paired(steps, ROUNDS, 1, time.process_time))
    yield "MiniLM", found | {"trained": {label: call.trained for label, call in steps.items()}}  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, part in (("forward", forward), ("step", step)):
        cells = {} if options.fresh else _paired.load("latency").get(name, {})
        for cell, found in part(tuple(cells)) if options.only in name else ():
            cells[cell] = found
            print(name, cell, found, flush=True)
            _paired.write("latency", _paired.load("latency") | {"machine": _paired.machine(), name: cells})


if __name__ == "__main__":
    main()

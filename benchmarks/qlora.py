"""One QLoRA training step (forward, backward, AdamW) against bitsandbytes and peft: time and the memory it adds.

    python benchmarks/qlora.py                     the whole grid, about 5 minutes on 2 cores; goes on where it stopped
    python benchmarks/qlora.py --only 128          cells whose name contains a word
    python benchmarks/qlora.py --fresh             measure again

A random-weight Llama, 768 wide, 12 layers, vocabulary 32,000; its linear layers in NF4 (block 64, double quantization),
the rest in bfloat16, which it computes in; LoRA of rank 16 on all linear layers, in float32, and the same optimizer on
both sides. Cells: 1 x 128 tokens and 4 x 256 tokens, without and with gradient checkpointing. Targets: time <= 0.65 at
128 tokens and <= 0.80 at 1,024, added memory <= 0.5 (without checkpointing).

The peer is given its faster way: no `prepare_model_for_kbit_training`, which would cast norms and the head to float32.
"""

import argparse
import json
import warnings
from functools import partial
from typing import Any

import _paired
import torch

CELLS = {"128": (1, 128, 15), "1024": (4, 256, 9)}  # rows, length, rounds
SHAPE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 12, "max_position_embeddings": 512}  # fmt: skip
RANK = 16


def base(**shape: int) -> Any:
    """The same random-weight Llama for everyone, in bfloat16."""
    import transformers as tf

    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**shape)).to(torch.bfloat16)


def ours(model: Any) -> Any:
    """Every linear layer but the head in NF4 with double quantization."""
    import featherweight as fw
    from featherweight.quant import NF4

    fw.quantize(model, NF4(block=64, double=True))
    return model


def bitsandbytes(model: Any) -> Any:
    """The same layers as Linear4bit."""
    import bitsandbytes as bnb

    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and not path.endswith("lm_head"):
            layer = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=module.bias is not None,
                                      compute_dtype=torch.bfloat16, quant_type="nf4")  # fmt: skip
            layer.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4",
                                             blocksize=64, compress_statistics=True)  # fmt: skip
            model.set_submodule(path, layer.to("cpu"))
    return model


def adapt_ours(model: Any) -> Any:
    import featherweight as fw

    fw.attach(model, fw.LoRA(rank=RANK, alpha=RANK, targets="linear"), head=False)
    return model


def adapt_peft(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))


def batch(cell: str) -> torch.Tensor:
    rows, length, _ = CELLS[cell]
    return torch.randint(1000, 32000, (rows, length), generator=torch.Generator().manual_seed(1))


def ours_step(cell: str, recompute: bool) -> Any:
    import featherweight as fw
    from featherweight.kernels import fuse

    model = adapt_ours(ours(base(**SHAPE))).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fuse(model)
    ids = batch(cell)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    return _paired.stepper(model, _paired.tasks_loss(fw.CausalLM(), model, data))


def bitsandbytes_step(cell: str, recompute: bool) -> Any:
    model = adapt_peft(bitsandbytes(base(**SHAPE))).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = batch(cell)
    return _paired.stepper(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss)


SIDES = {"featherweight": ours_step, "bitsandbytes": bitsandbytes_step}


def measure(cell: str, recompute: bool, rounds: int | None) -> dict[str, Any]:
    steps = {name: make(cell, recompute) for name, make in SIDES.items()}
    first = {name: step() for name, step in steps.items()}
    if (
        len({step.trained for step in steps.values()}) != 1
        or abs(first["featherweight"] - first["bitsandbytes"]) > 0.02
    ):
        raise RuntimeError(f"{cell}: the two sides do not train the same thing: {first}")
    result = _paired.compare(_paired.paired(steps, rounds or CELLS[cell][2]))
    memory = {
        name: _paired.child(__file__, "--memory", name, cell, str(int(recompute)), env=_paired.ALLOCATOR)
        for name in steps
    }
    result |= {f"{name}_added_mb": round(size / 2**20, 1) for name, size in memory.items()}
    ratio = memory["featherweight"] / memory["bitsandbytes"]
    return result | {"memory_ratio": round(ratio, 4), "trained": steps["featherweight"].trained, "first_loss": first}


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    return _paired.machine() | {"bitsandbytes": version("bitsandbytes")}


def main() -> None:
    parser = _paired.arguments(__doc__)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.memory:
        name, cell, recompute = options.memory
        print(json.dumps(_paired.added_memory(SIDES[name](cell, bool(int(recompute))))))
        return
    cells = {f"{cell}{'-checkpointing' if recompute else ''}": partial(measure, cell, recompute)
             for cell in CELLS for recompute in (False, True)}  # fmt: skip
    _paired.fill("qlora", cells, options, machine)


if __name__ == "__main__":
    main()

"""One QLoRA training step of a 7B-shaped model on a CPU: is it within 8 GiB of resident memory?

    python benchmarks/laptop7b.py                  about 5 minutes on 2 cores, 5 GiB of memory
    python benchmarks/laptop7b.py --layers 2       a part of the model, for a trial; writes nothing
    python benchmarks/laptop7b.py --paged          AdamW's states in a file

A Llama of 32 layers, 4096/11008 wide, vocabulary 32,000, with random weights, built layer by layer: a matrix is drawn
from N(0, 0.02²), encoded in NF4 (block 64, double quantization) and dropped before the next one is drawn, so that the
model never exists in floating point. Embedding, head and norms are bfloat16. LoRA of rank 16 on all linear layers, in
float32; AdamW; gradient checkpointing; one row of 512 tokens. Two steps are taken (the first one makes the optimizer's
states), and the peak is that of the whole process, building and imports included (VmHWM).
"""

import argparse
import gc
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import _paired
import torch

SHAPE = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "max_position_embeddings": 2048}  # fmt: skip
LAYERS, LENGTH, RANK = 32, 512, 16
GIB = 1 << 30


def build(layers: int) -> Any:
    """The quantized model; a matrix of it at a time in floating point."""
    import transformers as tf

    from featherweight.quant import NF4
    from featherweight.quant.quantized import become_quantized

    config = tf.LlamaConfig(**SHAPE, num_hidden_layers=layers, attn_implementation="sdpa")
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config).to(torch.bfloat16)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table is a buffer that no checkpoint holds
    scheme, chance = NF4(block=64, double=True), torch.Generator().manual_seed(0)
    blocks = {id(m) for m in model.model.layers.modules()}
    for module in model.modules():
        W = module._parameters.get("weight")
        if W is None:
            continue
        if W.dim() == 1:
            module.weight = torch.nn.Parameter(torch.ones(W.shape, dtype=W.dtype), requires_grad=False)
            continue
        drawn = torch.empty(W.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=chance)
        if id(module) in blocks:
            become_quantized(module, scheme, scheme.encode(drawn))
        else:
            module.weight = torch.nn.Parameter(drawn, requires_grad=False)
    return model


def step_of(model: Any, paged: bool) -> Any:
    import featherweight as fw
    from featherweight.kernels import fuse
    from featherweight.train.paged import PageFile, page

    fw.attach(model, fw.LoRA(rank=RANK, alpha=RANK, targets="linear"), head=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    fuse(model.train())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=1e-4)
    if paged:
        optimizer = page(optimizer, PageFile(Path(os.environ.get("TMPDIR", "/var/tmp"))))
    task = fw.CausalLM()
    ids = torch.randint(1000, 32000, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step() -> float:
        total, units = task.loss(model, data)
        (total / units).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float((total / units).detach())

    return step, optimizer


def breakdown(model: Any, optimizer: Any) -> dict[str, float]:
    """MiB of what stays between steps, by kind."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = {
        "codes and scales": sum(b.nbytes for n, b in model.named_buffers() if "rotary" not in n),
        "embedding, head, norms": sum(p.nbytes for p in model.parameters() if not p.requires_grad),
        "adapters": sum(p.nbytes for p in trained),
        "gradients (in a step)": sum(p.nbytes for p in trained),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values()),
    }
    return {name: round(size / 2**20, 1) for name, size in found.items()}


def measure(layers: int, paged: bool) -> dict[str, Any]:
    started = time.perf_counter()
    model = build(layers)
    built, peak_built = time.perf_counter() - started, _paired.status("VmHWM")
    step, optimizer = step_of(model, paged)
    gc.collect()
    steps = []
    for _ in range(2):
        gc.collect()
        before = _paired.status("VmRSS")
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        speed = {"seconds": round(seconds, 1), "tokens_per_second": round(LENGTH / seconds, 2)}
        steps.append({"loss": round(loss, 4), **speed, "resident_before_gib": round(before / GIB, 3)})
    peak = _paired.status("VmHWM")
    return {
        "parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad)
        + sum(m.shape[0] * m.shape[1] for m in model.modules() if hasattr(m, "scheme")),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tokens": LENGTH, "layers": layers, "paged": paged, "peak_gib": round(peak / GIB, 3),
        "peak_building_gib": round(peak_built / GIB, 3), "target_gib": 8, "building_s": round(built, 1), "steps": steps,
        "mib": breakdown(model, optimizer) | {"all else at the peak (activations, decoded matrices, libraries)": 0},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--paged", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.one:
        print(json.dumps(measure(options.layers, options.paged)))
        return
    flags = ["--paged"] if options.paged else []
    result = _paired.child(__file__, "--one", "--layers", str(options.layers), *flags, env=_paired.ALLOCATOR)
    rest = result["peak_gib"] * 1024 - sum(result["mib"].values())
    result["mib"]["all else at the peak (activations, decoded matrices, libraries)"] = round(rest, 1)
    print(json.dumps(result, indent=1), flush=True)
    if options.layers == LAYERS:
        former = _paired.load("laptop7b")
        _paired.write("laptop7b", former | {"machine": _paired.machine(), "paged" if options.paged else "step": result})


if __name__ == "__main__":
    main()

"""One training step (forward, backward, AdamW) of DoRA against peft's.

    python benchmarks/dora.py                      about 4 minutes on 2 cores
    python benchmarks/dora.py --rounds 5

A random-weight Llama shape of 12 layers, 2 x 256 tokens (causal LM), DoRA of rank 8 on all linear layers, in float32
and bfloat16 with float32 adapters on both sides; the same base and optimizer; ours as fw.train runs it, with the
frozen norms and gated products fused. LoRA of the same rank is measured beside it. Target: <= 0.85 of peft's time.
"""

import argparse
import warnings
from typing import Any

import _paired
import torch

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(dtype: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=4000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                            num_attention_heads=12, max_position_embeddings=512)  # fmt: skip
    return tf.LlamaForCausalLM(config).to(getattr(torch, dtype)).train()


def contenders(dtype: str) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    import featherweight as fw
    from featherweight.kernels import fuse

    config = LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules=NAMES)
    models = {
        "featherweight": fw.attach(base(dtype), fw.DoRA(rank=8, alpha=16, targets="linear")),
        "peft": get_peft_model(base(dtype), config),
        "lora": fw.attach(base(dtype), fw.LoRA(rank=8, alpha=16, targets="linear")),
    }
    for name in ("featherweight", "lora"):
        fuse(models[name])
    ids = torch.randint(3, 4000, (2, 256), generator=torch.Generator().manual_seed(1))
    return {name: _paired.stepper(m, lambda m=m: m(input_ids=ids, labels=ids).loss) for name, m in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    cells = {}
    for dtype in ("float32", "bfloat16"):
        steps = contenders(dtype)
        if steps["featherweight"].trained != steps["peft"].trained:
            raise RuntimeError("the two sides train different numbers of parameters")
        cells[dtype] = _paired.compare(_paired.paired(steps, options.rounds, 1)) | {"trained": steps["peft"].trained}
        print(dtype, cells[dtype], flush=True)
        _paired.write("dora", {"machine": _paired.machine(), "cells": cells})


if __name__ == "__main__":
    main()

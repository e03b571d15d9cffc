"""Many adapters in one batch against peft's `adapter_names`, the bare base and a single adapter of our own.

    python benchmarks/rows.py                      all cells, about 4 minutes on 2 cores; goes on where it stopped
    python benchmarks/rows.py --only decode-16     cells whose name contains a word
    python benchmarks/rows.py --fresh              measure again

decode-N   one step of 32 rows over N adapters, row i with adapter i mod N, after a prompt of 16 tokens in the cache,
           float32. Targets: peft / ours >= 2 at 16 and >= 2.7 at 32; ours <= 1.1 of our own single adapter's step.
write-32   16 tokens of 32 rows over 32 adapters, greedily, as `fw predict` writes them and as peft's `generate` does;
           the single adapter and the base are written by ours. write-1: one row, one adapter. No targets.
batch-32   a forward of 32 x 32 tokens over 32 adapters, up to the head, bfloat16 base and adapters. Targets: <= 0.65 of
           peft's time, <= 1.1 of the bare base's.

A 12-layer Llama shape with random weights, LoRA of rank 8 on all linear layers, the same values on both sides; the
outputs are compared before anything is timed.
"""

import re
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import _paired
import torch

RANK, PROMPT, TOKENS, NEW = 8, 16, 32, 16
CELLS = {  # adapters, rows, dtype, rounds
    "decode-16": (16, 32, "float32", 15), "decode-32": (32, 32, "float32", 15), "write-1": (1, 1, "float32", 15),
    "write-32": (32, 32, "float32", 7), "batch-32": (32, 32, "bfloat16", 7),
}  # fmt: skip
Call = Callable[[], torch.Tensor]


def base(dtype: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                            num_attention_heads=12, max_position_embeddings=512)  # fmt: skip
    return tf.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def fill(model: Any) -> Any:
    """The same values in the adapters of both libraries; adapters in the base's dtype."""
    dtype = model.get_input_embeddings().weight.dtype
    ours, theirs = re.compile(r"(layers\..*)\.adapters\.(\w+)\.(lora_.)"), re.compile(r"(layers\..*)\.(lora_.)\.(\w+)")
    for name, p in model.named_parameters():
        if found := ours.search(name):
            seed = " ".join(found.group(1, 2, 3))
        elif found := theirs.search(name):
            seed = " ".join(found.group(1, 3, 2))
        else:
            continue
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))
        p.data = (0.02 * noise).to(dtype)
    return model


def ours(adapters: int, dtype: str) -> Any:
    import featherweight as fw

    model = base(dtype)
    for i in range(adapters):
        fw.attach(model, fw.LoRA(rank=RANK, alpha=2 * RANK, targets="linear"), f"a{i}", train=False)
    return fill(model)


def peft(adapters: int, dtype: str) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    model = get_peft_model(base(dtype), config, adapter_name="a0")
    for i in range(1, adapters):
        model.add_adapter(f"a{i}", config)
    return fill(model).eval()


def decode(model: Any, rows: int, **options: Any) -> Call:
    """A step over a cache that is cut back after every call."""
    ids = torch.randint(1000, 32000, (rows, PROMPT + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = model(ids[:, :PROMPT], use_cache=True, **options).past_key_values

    def step() -> torch.Tensor:
        with torch.no_grad():
            logits = model(ids[:, PROMPT:], past_key_values=cache, use_cache=True, **options).logits
        cache.crop(-1)
        return logits

    return step


def write(model: Any, rows: int, **options: Any) -> Call:
    from featherweight.tasks.generation import run

    ids = torch.randint(1000, 32000, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)

    def texts() -> torch.Tensor:
        if not options:
            return run(model, ids, mask, 0, NEW, {"min_new_tokens": NEW})
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0,
                                  max_new_tokens=NEW, min_new_tokens=NEW, **options)  # fmt: skip

    return texts


def batch(model: Any, rows: int, **options: Any) -> Call:
    ids = torch.randint(1000, 32000, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    # no head: it has no adapter, and F.linear copies a frozen one for each row of a slice of the last tokens
    next(m for m in model.modules() if "lm_head" in m._modules).lm_head = torch.nn.Identity()

    def step() -> torch.Tensor:
        with torch.no_grad():
            return model(ids, use_cache=False, **options).logits

    return step


def contenders(name: str) -> dict[str, Call]:
    import featherweight as fw

    adapters, rows, dtype, _ = CELLS[name]
    make = {"decode": decode, "write": write, "batch": batch}[name.partition("-")[0]]
    names = [f"a{i % adapters}" for i in range(rows)]
    mixed, single = ours(adapters, dtype), ours(1, dtype)
    fw.switch(mixed, rows=names)
    calls = {
        "featherweight": make(mixed, rows),
        "peft": make(peft(adapters, dtype), rows, adapter_names=names),
        "single": make(single, rows),
        "base": make(base(dtype), rows),
    }
    far = (calls["featherweight"]() - calls["peft"]()).abs().max().item()  # of texts: no token may differ
    if far > (1e-4 if dtype == "float32" else 0.1):
        raise RuntimeError(f"{name}: the two sides differ by {far}")
    return calls


def measure(name: str, rounds: int | None) -> dict[str, Any]:
    result = _paired.compare(_paired.paired(contenders(name), rounds or CELLS[name][3]))
    return result | {
        "peft_over_ours": round(1 / result["ratio_to_peft"], 3),
        "adapters": CELLS[name][0],
        "rows": CELLS[name][1],
    }


def main() -> None:
    options = _paired.arguments(__doc__).parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    _paired.fill("rows", {name: partial(measure, name) for name in CELLS}, options)


if __name__ == "__main__":
    main()

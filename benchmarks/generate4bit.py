"""Token generation on a 4-bit model of 0.5B parameters against bitsandbytes, without and with an unmerged LoRA.

    python benchmarks/generate4bit.py              about 4 minutes on 2 cores
    python benchmarks/generate4bit.py --tokens 16  shorter runs

Qwen2.5-0.5B's shape with random weights (24 layers, 896/4864 wide, 14 heads of which 2 for keys, vocabulary 151,936,
tied), linear layers in NF4 (block 64, double quantization), the rest in bfloat16; a prompt of 32 tokens, then greedy
tokens one by one, by what `fw.generate` calls on one side and transformers' `generate` on the other. LoRA: rank 16 on
all linear layers, float32, not merged, B not zero. Targets: >= 1.5x bitsandbytes' tokens per second; an unmerged LoRA
costs <= 10 %.

`limit`: the time that reading the packed weights and the head once would take at the bandwidth measured in this run
(a sum over 512 MB), in ms per token.
"""

import argparse
import json
import time
import warnings
from typing import Any

import _paired
import qlora
import torch

SHAPE = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "tie_word_embeddings": True}  # fmt: skip
PROMPT = 32


def base() -> Any:
    import transformers as tf

    torch.manual_seed(0)
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE)).to(torch.bfloat16).eval()


def started(model: Any) -> Any:
    """B of every LoRA drawn at random: an adapter that does something."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.02, generator=chance)
    return model.eval()


def ours(adapted: bool) -> Any:
    from featherweight.kernels import fuse

    model = qlora.ours(base())
    if adapted:
        started(qlora.adapt_ours(model))
    fuse(model)
    return model


def bitsandbytes(adapted: bool) -> Any:
    model = qlora.bitsandbytes(base())
    return started(qlora.adapt_peft(model)) if adapted else model.eval()


def ids() -> torch.Tensor:
    return torch.randint(1000, 32000, (1, PROMPT), generator=torch.Generator().manual_seed(1))


def our_writer(model: Any, tokens: int) -> Any:
    from featherweight.tasks.generation import run

    given = ids()

    def write() -> Any:
        with torch.inference_mode():
            return run(model, given, torch.ones_like(given), 0, tokens, {"min_new_tokens": tokens})

    return write


def their_writer(model: Any, tokens: int) -> Any:
    given = ids()

    def write() -> Any:
        with torch.inference_mode():
            return model.generate(input_ids=given, attention_mask=torch.ones_like(given), do_sample=False,
                                  min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)  # fmt: skip

    return write


def bandwidth() -> float:
    """Bytes per second of reading memory once, the best of some."""
    x = torch.ones(128 << 20)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - start)
    return x.nbytes / min(times)


def limit(model: Any, speed: float) -> float:
    """Milliseconds to read what a token needs once: packed tensors and the head."""
    packed = sum(b.nbytes for name, b in model.named_buffers() if "rotary" not in name)
    return (packed + model.lm_head.weight.nbytes) / speed * 1e3


def measure(tokens: int, rounds: int) -> dict[str, Any]:
    models = {"featherweight": ours(False), "featherweight+lora": ours(True), "bitsandbytes": bitsandbytes(False),
              "bitsandbytes+peft": bitsandbytes(True)}  # fmt: skip
    makers = {name: our_writer if "featherweight" in name else their_writer for name in models}
    writers = {name: makers[name](model, tokens) for name, model in models.items()}
    shapes = {name: tuple(write().shape) for name, write in writers.items()}
    if set(shapes.values()) != {(1, PROMPT + tokens)}:
        raise RuntimeError(f"not equally many tokens: {shapes}")
    times = _paired.paired(writers, rounds)
    result: dict[str, Any] = {"tokens": tokens, "rounds": rounds}
    for name, seconds in times.items():
        result[f"{name}_ms_per_token"] = round(sorted(seconds)[len(seconds) // 2] / tokens * 1e3, 2)
    pairs = {
        "speedup": ("bitsandbytes", "featherweight"),
        "speedup with LoRA": ("bitsandbytes+peft", "featherweight+lora"),
        "price of LoRA": ("featherweight+lora", "featherweight"),
        "price of peft": ("bitsandbytes+peft", "bitsandbytes"),
    }
    for what, (a, b) in pairs.items():
        compared = _paired.compare({"ours": times[a], "peer": times[b]}, ours="ours")
        result[what] = {"ratio": compared["ratio_to_peer"], "quartiles": compared["ratio_to_peer_quartiles"]}
    speed = bandwidth()
    return result | {
        "bandwidth_gb_s": round(speed / 1e9, 1),
        "limit_ms_per_token": round(limit(models["featherweight"], speed), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    result = measure(options.tokens, options.rounds)
    print(json.dumps(result, indent=1), flush=True)
    _paired.write("generate4bit", {"machine": qlora.machine(), **result})


if __name__ == "__main__":
    main()

"""Saving, loading and exchanging an adapter of 5.6 MB against peft.

    python benchmarks/files.py [--rounds N]         about a minute on 2 cores

save      an attached adapter into a folder that has none yet. Target: peft / ours >= 5.
load      onto a fresh base that has no adapter: `PeftModel.from_pretrained` against `fw.load`. Target: >= 10.
beside    beside one that is there: `load_adapter` against `fw.load`.
exchange  new tensors into the one that is there: `hotswap_adapter` against `fw.load(..., replace=True)`.
floor     safetensors' own `save_file` and `load_file`, for comparison.

A 12-layer Llama shape with random weights and LoRA of rank 8 on all linear layers; both sides write the same tensors
and neither waits for the disk. What is undone between two rounds (a detach, a fresh base) is not timed.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _paired
import torch

RANK = 8
Round = Callable[[], float]  # seconds of one round


def base() -> Any:
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                            num_attention_heads=12, max_position_embeddings=512)  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def once(folder: Path, save: Callable[[Path], Any]) -> Round:
    """Time a save into a folder that is new each time."""

    def run() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return seconds(lambda: save(folder))

    return run


def saves(ours: Any, theirs: Any, folder: Path) -> dict[str, Round]:
    from safetensors.torch import save_file

    import featherweight as fw

    tensors = {n: p.detach().clone() for n, p in ours.named_parameters() if "lora_" in n}
    return {
        "featherweight": once(folder / "ours", lambda to: fw.save(ours, to)),
        "peft": once(folder / "theirs", theirs.save_pretrained),
        "floor": once(folder / "plain", lambda to: save_file(tensors, to / "a.safetensors")),
    }


def loads(folder: Path) -> dict[str, Round]:
    from peft import PeftModel
    from safetensors.torch import load_file

    import featherweight as fw

    plain = base()

    def ours() -> float:
        spent = seconds(lambda: fw.load(plain, folder))
        fw.detach(plain)
        return spent

    def theirs() -> float:
        holder: list[Any] = []
        spent = seconds(lambda: holder.append(PeftModel.from_pretrained(plain, str(folder))))
        holder[0].unload()
        return spent

    return {
        "featherweight": ours,
        "peft": theirs,
        "floor": lambda: seconds(lambda: load_file(folder / "adapter_model.safetensors")),
    }


def besides(ours: Any, theirs: Any, folder: Path) -> dict[str, Round]:
    import featherweight as fw

    def mine() -> float:
        spent = seconds(lambda: fw.load(ours, folder, "second"))
        fw.detach(ours, "second")
        return spent

    def its() -> float:
        spent = seconds(lambda: theirs.load_adapter(str(folder), "second"))
        theirs.delete_adapter("second")
        return spent

    return {"featherweight": mine, "peft": its}


def exchanges(ours: Any, theirs: Any, folder: Path) -> dict[str, Round]:
    from peft.utils.hotswap import hotswap_adapter

    import featherweight as fw

    return {
        "featherweight": lambda: seconds(lambda: fw.load(ours, folder, replace=True)),
        "peft": lambda: seconds(lambda: hotswap_adapter(theirs, str(folder), "default")),
    }


def paired(contenders: dict[str, Round], rounds: int) -> dict[str, Any]:
    """Each contender's own clock, in alternating order."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first is for warmth
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            spent = contenders[name]()
            if turn:
                times[name].append(spent)
    result = _paired.compare(times)
    ratios = [theirs / mine for mine, theirs in zip(times["featherweight"], times["peft"], strict=True)]
    return result | {"peft_over_ours": round(statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = max(2, parser.parse_args().rounds)
    warnings.simplefilter("ignore")
    _paired.threads()
    from peft import LoraConfig, get_peft_model

    import featherweight as fw

    ours = fw.attach(base(), fw.LoRA(rank=RANK, alpha=2 * RANK, targets="linear"), head=False)
    theirs = get_peft_model(base(), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    with tempfile.TemporaryDirectory(dir=_paired.RESULTS) as place:
        folder = Path(place)
        fw.save(ours, folder / "a")
        size = (folder / "a" / "adapter_model.safetensors").stat().st_size
        cells = {
            "save": saves(ours, theirs, folder),
            "load": loads(folder / "a"),
            "beside": besides(ours, theirs, folder / "a"),
            "exchange": exchanges(ours, theirs, folder / "a"),
        }
        found = {}
        for name, contenders in cells.items():
            found[name] = paired(contenders, rounds)
            print(name, json.dumps(found[name]), flush=True)
    _paired.write("files", {"machine": _paired.machine(), "bytes": size, "cells": found})


if __name__ == "__main__":
    main()

"""Start-up and life-cycle costs against peft: import, `fw --help`, attach, save, load, switch.

    python benchmarks/startup.py

On the 110M Llama shape with rank-8 LoRA on all linear layers. Imports are timed in fresh interpreters, beyond torch and
transformers; the rest in one process, interleaved. Targets: import + attach + save at most 1.5 s beyond torch and
transformers; `fw --help` within 0.3 s without torch.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _paired

BASE = "import time, torch, transformers; from transformers import LlamaForCausalLM"
OURS = "import featherweight as fw; fw.attach, fw.LoRA, fw.save, fw.load, fw.switch"
PEER = "from peft import LoraConfig, get_peft_model, PeftModel"


def fresh(code: str) -> float:
    """Seconds that `code` takes after torch and transformers are there, in a new interpreter."""
    timed = f"{BASE}\nt = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([str(Path(sys.executable).parent / "fw"), "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def torch_loaded_by_help() -> bool:
    code = "import sys, featherweight.cli.main; print('torch' in sys.modules)"
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "True"
    )


def llama() -> Any:
    from step import base

    return base("llama", "float32")


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ours(folder: Path) -> dict[str, float]:
    import featherweight as fw

    model, method = llama(), fw.LoRA(rank=8, alpha=16, targets="linear")
    found = {"attach": clock(lambda: fw.attach(model, method, name="a", head=False))}
    found["save"] = clock(lambda: fw.save(model, folder / "ours", name="a"))
    found["load"] = clock(lambda: fw.load(model, folder / "ours", name="b"))
    found["switch"] = clock(lambda: fw.switch(model, "a"))
    return found


def peft(folder: Path) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model

    model, held = llama(), []
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    found = {"attach": clock(lambda: held.append(get_peft_model(model, config, adapter_name="a")))}
    found["save"] = clock(lambda: held[0].save_pretrained(folder / "peft"))
    found["load"] = clock(lambda: held[0].load_adapter(folder / "peft" / "a", adapter_name="b"))
    found["switch"] = clock(lambda: held[0].set_adapter("b"))
    return found


def lifecycle(rounds: int) -> dict[str, Any]:
    """Milliseconds of each verb on both sides, medians over rounds, and the median ratio."""
    seen: dict[str, list[dict[str, float]]] = {"featherweight": [], "peft": []}
    for turn in range(rounds + 1):  # the first round warms up
        folder = Path(tempfile.mkdtemp())
        for name in ("featherweight", "peft")[:: 1 if turn % 2 else -1]:
            seen[name].append({"featherweight": ours, "peft": peft}[name](folder))
        shutil.rmtree(folder)
    mine, theirs = seen["featherweight"][1:], seen["peft"][1:]
    return {verb: {"featherweight_ms": round(statistics.median(r[verb] for r in mine) * 1e3, 2),
                   "peft_ms": round(statistics.median(r[verb] for r in theirs) * 1e3, 2),
                   "ratio": round(statistics.median(a[verb] / b[verb] for a, b in zip(mine, theirs, strict=True)), 4)}
            for verb in ("attach", "save", "load", "switch")}  # fmt: skip


def imports(rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"featherweight": [], "peft": []}
    for _ in range(rounds):
        times["featherweight"].append(fresh(OURS))
        times["peft"].append(fresh(PEER))
    return {"featherweight_s": round(statistics.median(times["featherweight"]), 3),
            "peft_s": round(statistics.median(times["peft"]), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(times["featherweight"], times["peft"],
            strict=True)), 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    _paired.threads()
    result: dict[str, Any] = {"machine": _paired.machine(), "rounds": rounds, "import": imports(rounds)}
    seconds = [help_seconds() for _ in range(rounds + 1)][1:]
    result["help"] = {"fw_help_s": round(statistics.median(seconds), 3), "imports_torch": torch_loaded_by_help()}
    result["lifecycle"] = lifecycle(rounds)
    first = result["lifecycle"]
    total = (
        result["import"]["featherweight_s"]
        + (first["attach"]["featherweight_ms"] + first["save"]["featherweight_ms"]) / 1e3
    )
    result["import_attach_save_s"] = round(total, 3)
    print(json.dumps(result, indent=1))
    _paired.write("startup", result)


if __name__ == "__main__":
    main()

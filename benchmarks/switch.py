"""Switching between two adapters against peft's `set_adapter`.

    python benchmarks/switch.py [--rounds N]         under a minute

There and back once on a 12-layer Llama shape with LoRA of rank 8 on all linear layers, adapters for use, not for
training. `rows`: 32 rows over 8 adapters, which peft is told in every call. Target: peft / ours >= 20.
"""

import argparse
import json
import warnings
from typing import Any

import _paired
from rows import ours, peft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = max(2, parser.parse_args().rounds)
    warnings.simplefilter("ignore")
    _paired.threads()
    import featherweight as fw

    mine, theirs = ours(8, "float32"), peft(8, "float32")

    def switched() -> None:
        fw.switch(mine, "a1")
        fw.switch(mine, "a0")

    def set_adapter() -> None:
        theirs.set_adapter("a1", inference_mode=True)
        theirs.set_adapter("a0", inference_mode=True)

    names = [f"a{i % 8}" for i in range(32)]
    contenders: dict[str, Any] = {
        "featherweight": switched,
        "peft": set_adapter,
        "rows": lambda: fw.switch(mine, rows=names),
    }
    result = _paired.compare(_paired.paired(contenders, rounds))
    result["peft_over_ours"] = round(1 / result["ratio_to_peft"], 1)
    print(json.dumps(result))
    _paired.write("switch", {"machine": _paired.machine(), "result": result})


if __name__ == "__main__":
    main()

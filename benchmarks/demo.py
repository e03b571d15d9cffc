"""What `make demo` shows, kept: accuracy of frozen embeddings and of the tuned model, and the time.

python benchmarks/demo.py        two minutes on 2 cores
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import _paired


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "fw"), "demo", "--json", "--output", f"{folder}/demo"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    kept = {k: v for k, v in found.items() if k not in ("command", "exit", "output")}
    print(json.dumps(kept, indent=1))
    _paired.write("demo", {"machine": _paired.machine(), **kept})


if __name__ == "__main__":
    main()

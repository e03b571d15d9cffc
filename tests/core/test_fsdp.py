"""Attach, then fully_shard: two gloo ranks compute what one process does; the other order is refused."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "support" / "sharded.py"


def test_two_sharded_ranks_equal_one_process() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

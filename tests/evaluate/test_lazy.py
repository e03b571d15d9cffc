"""Importing tasks and verbs costs nothing: torch, transformers and the scorers come with their first use."""

import subprocess
import sys


def test_imports_are_light():
    code = (
        "import sys, featherweight.tasks, featherweight.evaluate;"
        "print(sorted({'torch', 'transformers', 'sklearn', 'scipy', 'sacrebleu', 'rouge_score'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

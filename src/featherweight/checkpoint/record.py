"""What an adapter file says of itself in its safetensors metadata, under `featherweight`: more than PEFT's JSON can
hold.

    {"format": 1, "version": "0.1.0", "method": {"type": "lora", ...}, "head": true, "task": {...} | null,
     "base": {fingerprint}, "base_path": "../base" | null, "seed": 0, "quantize": [{"type": "nf4", ...}] | null,
     "config": "<digest of the JSON's method fields>"}

The JSON stays free of keys that peft does not know: peft warns at them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featherweight.checkpoint.fingerprint import Fingerprint
from featherweight.core.errors import InputError, Problem

KEY = "featherweight"
FORMAT = 1
# the JSON's fields that do not touch what is computed: whoever shares an adapter edits them
FREE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")


@dataclass(frozen=True)
class Record:
    """`method` and `task` in their file form; `config` the digest of the JSON that was written with it.

    `seed`: what the tensors that the base's checkpoint lacks (a pooler) were drawn from. `quantize`: how the base was
    quantized (`quant.recipe`), None where it was not.
    """

    version: str
    method: dict[str, Any]
    head: bool
    task: dict[str, Any] | None
    base: Fingerprint
    base_path: str | None
    seed: int
    config: str
    quantize: list[dict[str, Any]] | None = None
    format: int = FORMAT

    def to_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(asdict(self), sort_keys=True)}


def from_metadata(metadata: Mapping[str, str], where: str) -> Record | None:
    """The record, None for a file that another library wrote. Raises InputError for one that cannot be read."""
    if KEY not in metadata:
        return None
    try:
        form = json.loads(metadata[KEY])
        form["base"] = Fingerprint(**form["base"])
        found = Record(**form)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            Problem("damaged metadata", f"{where}:{KEY}", got=str(error), fix="save or copy the adapter again")
        ) from error
    if found.format != FORMAT:
        raise InputError(
            Problem(
                "written by another version",
                where,
                f"format {FORMAT}",
                f"format {found.format}",
                "update featherweight",
            )
        )
    return found


def digest(config: Mapping[str, Any]) -> str:
    """Of the JSON's fields that decide what the adapter computes."""
    kept = {k: v for k, v in config.items() if k not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

"""The JSON fields that all PEFT types share, and the task heads (`modules_to_save`) that go with any of them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft import own
from featherweight.checkpoint.peft.names import PREFIX
from featherweight.core.adapter import Adapter, Replace
from featherweight.core.anatomy import find_head
from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.host import base_modules, frozen_class

UNWRAPPED = "base_model."  # of a head's keys beside virtual tokens: peft does not wrap their base
VERSION = "0.21.2"  # the release of peft whose fields these are
SHARED = (
    "peft_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "peft_version",
)
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# what peft puts into modules_to_save by itself: its heads are looked for under these names, whichever the model has
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def common(model: nn.Module, heads: Sequence[str]) -> dict[str, Any]:
    """The shared fields for a model whose saved heads are the modules `heads` (leaves).

    peft expects the head in the file of every SEQ_CLS, TOKEN_CLS and QUESTION_ANS adapter; without one the task
    stays null and the class is named in `auto_mapping` instead.
    """
    cls = frozen_class(model)
    task = next((t for ending, t in TASKS.items() if cls.__name__.endswith(ending)), None)
    expected = HEADS.get(task or "", ())
    kept = top(heads)
    if expected and not set(kept) & set(expected):
        task, expected = None, ()
    mapping = None if task else {"base_model_class": cls.__name__, "parent_library": cls.__module__}
    return {
        "auto_mapping": mapping,
        "base_model_name_or_path": base_name(model),
        "inference_mode": True,
        "modules_to_save": list(dict.fromkeys((*expected, *kept))) or None,
        "peft_version": VERSION,
        "revision": None,
        "task_type": task,
    }


def top(heads: Sequence[str]) -> list[str]:
    """The outermost modules of head leaves: `classifier.dense`, `classifier.out_proj` -> `classifier`."""
    return list(dict.fromkeys(path.partition(".")[0] for path in heads))


def base_name(model: nn.Module) -> str | None:
    """The hub name of the base, or the folder's name of a local one: a path of one machine is of no use on another."""
    name = str(getattr(model, "name_or_path", "") or "")
    return Path(name).resolve().name if is_local(name) else name or None


def is_local(name: str) -> bool:
    """Whether a model's name is a place on this machine and no hub name (`owner/name`)."""
    return bool(name) and (Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir())


def head_paths(model: nn.Module, adapters: Mapping[str, Adapter]) -> list[str]:
    """Where adapters train a copy of the task head."""
    return [s.path for s in find_head(model)[0] if isinstance(adapters.get(s.path), Replace)]


def head_entries(
    adapters: Mapping[str, Adapter], heads: Sequence[str], state: Mapping[str, Tensor], prefix: str = PREFIX
) -> list[Entry]:
    """A head is stored whole, under its plain name; a tensor that is tied to another one is stored there."""
    keys = [f"{path}.{n}" for path in heads for n, _ in adapters[path].named_parameters(recurse=False)]
    return [same(f"{prefix}{key}", key, tuple(state[key].shape)) for key in keys if key in state]


def brought(model: nn.Module, stored: Collection[str]) -> set[str]:
    """The base's head tensors of which a file (with the keys `stored`) has its own: the base's copies are never
    used.
    """
    names = [f"{s.path}.{n}" for s in find_head(model)[0] for n, p in s.module._parameters.items() if p is not None]
    return {n for n in names if any(f"{prefix}{n}" in stored for prefix in (PREFIX, own.PREFIX, UNWRAPPED))}


def wants_head(model: nn.Module, config: Mapping[str, Any], where: str) -> bool:
    """Whether a config's `modules_to_save` is the model's head. Raises InputError where it is anything else."""
    there = [n for n, _ in base_modules(model)]
    asked = [m for m in config.get("modules_to_save") or [] if any(p == m or p.endswith(f".{m}") for p in there)]
    heads = [s.path for s in find_head(model)[0]]
    known = {p for path in heads for p in tails(path)}
    foreign = [m for m in asked if m not in known]
    if foreign:
        raise InputError(
            Problem(
                "whole modules saved beside the adapter that are not the task's head",
                f"{where}:modules_to_save",
                f"parts of the head: {listed(top(heads))}",
                listed(foreign),
                "merge the adapter into its base with peft and load the merged model",
            )
        )
    return bool(asked)


def tails(path: str) -> list[str]:
    """Every name by which peft would find a head leaf: the modules above it, by full path and last part."""
    parts = path.split(".")
    above = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return [*above, *(a.rpartition(".")[2] for a in above)]

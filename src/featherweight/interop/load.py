"""`load_model`: base and adapter in one call, ready for inference."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from featherweight.checkpoint.load import Stored, load, read
from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.method import Method
from featherweight.core.noun import Noun
from featherweight.interop.streamed import config_of
from featherweight.interop.transformers import fit_tokenizer, load_tokenizer, refusing, weighed
from featherweight.quant.recipe import Recipe

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def load_model(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    train: bool = False,
    *,
    device: str | torch.device | None = None,
    name: str = "default",
    strict_base: bool = True,
    quantize: Any = None,
    filed: bool = False,
    over: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Any:
    """The adapter in `folder` on its base, in eval mode (`train=True`: marked and ready to train on), with
    tokenizer and task.

    The base is `base` where given; else the `model` of the folder's run.toml, the place on record as seen from the
    folder, or PEFT's `base_model_name_or_path`. Its fingerprint is checked. A base that was quantized in training is
    quantized again, the same way; `quantize` is another scheme for it, or "none". `filed`: its tensors stay in their
    files, see `load_base`. `over`: folders of the adapters that it works over (a Fusion's), by their names, where they
    do not lie beside it. Raises InputError where no base is found, naming what was tried.
    """
    stored = read(folder, name)
    place = os.fspath(base) if base is not None else find_base(stored)
    tokenizer = next((load_tokenizer(p) for p in (stored.folder, Path(folder)) if has_tokenizer(p)), None)
    task = task_of(stored)
    seed = stored.record.seed if stored.record is not None else 0
    recorded = stored.record.quantize if stored.record is not None else None
    if quantize is None and recorded and not in_codes(place):
        quantize = recorded
    kind = task or Foreign.of(stored)
    with no_other(stored, place, kind):
        model = weighed(place, kind, dtype, seed, Recipe.of(quantize), {}, filed)
    model.task = task
    model = model.to(device) if device is not None else model
    model.tokenizer = load_tokenizer(place) if tokenizer is None else tokenizer
    beneath(model, of_use(stored, over or {}), strict_base)
    load(model, folder, name, train=train, strict_base=strict_base)
    fit_tokenizer(model)  # after the base was looked at: of another one that is said, not that it has other words
    return model.train(train)


def beneath(model: Any, over: Mapping[str, str | os.PathLike[str]], strict_base: bool = True) -> None:
    """Load the adapters that another works over; they stay as they are. Raises InputError over all that is wrong."""
    problems: list[Problem] = []
    for name, folder in over.items():
        try:
            load(model, folder, name, strict_base=strict_base)
        except InputError as error:
            where = f"over.{name}: {os.fspath(folder)}"
            problems += [replace(p, where=p.where or where) for p in error.problems]
    raise_all(problems)


def of_use(stored: Stored, over: Mapping[str, Any]) -> Mapping[str, Any]:
    """`over`, if the stored adapter works over all of them. Raises InputError where it does not."""
    wanted = needs(stored)
    raise_all(
        Problem(
            "the adapter works over no such one", f"over.{name}", listed(wanted), str(stored.folder), "leave it out"
        )
        for name in over
        if name not in wanted
    )
    return over


def needs(stored: Stored) -> tuple[str, ...]:
    """The names of the adapters that a stored one works over."""
    return Method.from_dict(stored.record.method).needs if stored.record is not None else ()


@contextmanager
def no_other(stored: Stored, place: str, task: Any) -> Iterator[None]:
    """Where a base cannot be loaded: say first that the adapter belongs to one of another architecture, if it does."""
    try:
        yield
    except InputError as error:
        named = stored.record.base.base if stored.record is not None else ""
        kind = class_at(place, task)
        if not named or kind is None or named.split(" ")[0] == kind:
            raise
        fix = "load it onto its own base"
        raise InputError(
            Problem("the adapter belongs to another base", place, named, kind, fix), *error.problems
        ) from error


def class_at(place: str, task: Any) -> str | None:
    """The class that a base is loaded as for a task, the type of its config where there is none; None where it has no
    readable config."""
    import transformers

    try:
        with refusing(place):
            config, _ = config_of(place, {})
    except InputError:
        return None
    kinds = getattr(getattr(transformers, getattr(task, "auto", ""), None), "_model_mapping", {})
    return str(kinds[type(config)].__name__ if type(config) in kinds else config.model_type)


def in_codes(place: str) -> bool:
    """Whether a base's own checkpoint is quantized: it is taken as it is."""
    with refusing(place):
        config, _ = config_of(place, {})
    return getattr(config, "quantization_config", None) is not None


def has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZERS)


def find_base(stored: Stored) -> str:
    """Where the base is; a folder that is not there is passed over, a hub name is taken."""
    said = str(stored.config.get("base_model_name_or_path") or "")
    near = stored.record.base_path if stored.record is not None else None
    local = [p for name in (run_model(stored.folder), said) if name for p in (Path(name), stored.folder / name)]
    local += [stored.folder / near] if near else []
    for place in local:
        if (place / "config.json").is_file():
            return str(place)
    hub = run_model(stored.folder) or said
    if hub and near is None and not Path(hub).is_absolute() and hub.count("/") <= 1:
        return hub
    tried = listed([str(p) for p in local])
    raise InputError(
        Problem(
            "the adapter's base is not where it was",
            str(stored.folder),
            got=f"none of {tried}",
            fix="say where it is: load_model(folder, base=...)",
        )
    )


def run_model(folder: Path) -> str:
    """The `model` of a run's run.toml, "" without one."""
    file = folder / "run.toml"
    return str(tomllib.loads(file.read_text(encoding="utf-8")).get("model") or "") if file.is_file() else ""


def task_of(stored: Stored) -> Any:
    """The task on record. Tasks lie above this layer: their family is found by name, as a plug-in is."""
    form = stored.record.task if stored.record is not None else None
    if form is None:
        return None
    import_module("featherweight.tasks")
    family = next(f for f in Noun.__subclasses__() if f.__name__ == "Task")
    return family.from_dict(form, where=f"{stored.folder}:task")


class Foreign:
    """What stands in for a task where none is on record: PEFT's task type, and as many labels as the stored head
    has.
    """

    def __init__(self, auto: str, labels: int | None):
        self.auto, self.labels = auto, labels

    @classmethod
    def of(cls, stored: Stored) -> "Foreign | None":
        kind = stored.config.get("task_type")
        heads = [t.shape[0] for k, t in stored.tensors.items() if k.endswith(HEADS)]
        return cls(AUTO[kind], heads[-1] if heads else None) if kind in AUTO else None

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": self.labels} if self.labels is not None else {}


HEADS = (".classifier.weight", ".score.weight", ".classifier.out_proj.weight", ".qa_outputs.weight")

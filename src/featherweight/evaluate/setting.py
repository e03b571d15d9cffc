"""What a model is evaluated with where the caller does not say: its own task, its own tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem
from featherweight.tasks.check import check_length, check_vocabulary, position_limit
from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task


def tokenizer_of(model: nn.Module, tokenizer: Any = None) -> Any:
    """The tokenizer given, else `model.tokenizer`, else the one of the folder or name that the model came from.

    Raises InputError where there is none, or where its ids go beyond the model's embedding.
    """
    found = tokenizer or getattr(inner(model), "tokenizer", None) or stored(model)
    check_vocabulary(model, found)
    return found


def stored(model: nn.Module) -> Any:
    name = str(getattr(getattr(inner(model), "config", None), "_name_or_path", ""))
    if not name:
        fix = "give tokenizer=..., or set model.tokenizer"
        raise InputError(Problem("no tokenizer for this model", "tokenizer", fix=fix))
    from featherweight.interop.transformers import load_tokenizer

    return load_tokenizer(name)


def task_of(model: nn.Module, task: Task | None, shape: Any = None) -> Task:
    """The task given, else `model.task`, else the default of the data's shape; labels from the model's config if it
    has none of its own. Raises InputError where neither says."""
    found = task or getattr(inner(model), "task", None)
    if found is None and shape is not None:
        from featherweight.tasks.pick import task_for

        found = task_for(shape, getattr(inner(model), "config", None))
    found = found or task_of_model(model)
    if found is None:
        fix = "give task=..., for instance fw.Classification()"
        raise InputError(Problem("no task for this model", "task", fix=fix))
    fitted = with_labels(found, model)
    check_outputs(model, fitted)
    return fitted


def task_of_model(model: nn.Module) -> Task | None:
    """The task that a model's class was made for, None where it has no head of a known kind."""
    from featherweight import tasks
    from featherweight.core.host import frozen_class
    from featherweight.tasks import CausalLM, Classification, MultiLabel, Regression, Seq2Seq

    name = frozen_class(inner(model)).__name__
    if name.endswith("ForSequenceClassification"):
        kinds = {"regression": Regression, "multi_label_classification": MultiLabel}
        return kinds.get(str(inner(model).config.problem_type), Classification)()  # type: ignore[union-attr]
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return CausalLM()
    for head in ("QuestionAnswering", "TokenClassification", "MultipleChoice"):
        if name.endswith(f"For{head}"):
            made: Task = getattr(tasks, head)()
            return made
    return Seq2Seq() if name.endswith("ForConditionalGeneration") else None


def with_labels(task: Task, model: nn.Module) -> Task:
    return labeled(task, getattr(inner(model), "config", None))


def labeled(task: Task, config: Any) -> Task:
    """The task with the labels of a model's config where it has none of its own."""
    names = getattr(config, "id2label", None)
    if getattr(task, "labels", None) != () or not names:
        return task
    return replace(task, labels=tuple(names[i] for i in sorted(names)))  # type: ignore[call-arg]


def check_outputs(model: nn.Module, task: Task) -> None:
    """Raise InputError where the model has not the task's head, or one with another number of outputs than it has
    labels."""
    check_head(model, task)
    wanted = task.model_options().get("num_labels")
    has = getattr(getattr(inner(model), "config", None), "num_labels", None)
    if wanted is not None and has != wanted:
        fix = "load the model that was trained for this task, or train one"
        raise InputError(Problem("the model's head is not this task's", "task", f"{wanted} outputs", str(has), fix))


def check_head(model: nn.Module, task: Task) -> None:
    """Raise InputError for a model that transformers makes for another task. Which of the language models goes with
    which task, and what has no states to read, is for the tasks to say."""
    from featherweight.core.host import frozen_class

    core = inner(model)
    name = frozen_class(core).__name__
    speaks = getattr(core, "get_output_embeddings", lambda: None)() is not None
    if task.auto == "AutoModel" or (speaks and "LM" in task.auto) or name in classes(task.auto):
        return
    if any(name in classes(auto) for auto in {kind.auto for kind in type(task).known.values()}):  # type: ignore[attr-defined]
        fix = "give a model that was saved with its head, or train an adapter for this task (fw.train, fw train)"
        wanted = f"one for {task.auto.removeprefix('AutoModel').removeprefix('For')}"
        raise InputError(Problem("the model has no head for this task", "model", wanted, name, fix))


@cache
def classes(auto: str) -> frozenset[str]:
    """Names of transformers' model classes behind one of its Auto classes."""
    import transformers

    held = getattr(transformers, auto)._model_mapping._model_mapping.values()
    return frozenset(name for each in held for name in ([each] if isinstance(each, str) else each))


def lengths(model: nn.Module, task: Task, length: int | None) -> int | None:
    """The length to cut questions at: texts that go on need room for what is generated, at most half the positions."""
    cut = check_length(model, length)
    limit = position_limit(model)
    if not task.generates or limit is None or getattr(inner(model).config, "is_encoder_decoder", False):
        return cut
    new = min(int(getattr(task, "max_new_tokens", 0)), limit // 2)
    return min(cut or limit, limit - new)

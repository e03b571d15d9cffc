"""The task that a data shape asks for."""

from typing import Any

from featherweight.core.errors import InputError, Problem, listed
from featherweight.tasks.causal import CausalLM
from featherweight.tasks.choices import Choices
from featherweight.tasks.classification import Classification
from featherweight.tasks.embedding import Embedding
from featherweight.tasks.multilabel import MultiLabel
from featherweight.tasks.regression import Regression
from featherweight.tasks.task import Task

DEFAULTS: tuple[type[Task], ...] = (Classification, MultiLabel, Regression, CausalLM, Choices, Embedding)


def task_for(shape: Any) -> Task:
    """The default task of a `Shape` or of its name. Generative rows and choices are a decoder's unless Seq2Seq or
    Seq2SeqChoices is asked for."""
    name = str(getattr(shape, "name", shape))
    for kind in DEFAULTS:
        if name in kind.shapes:
            return kind()
    known = [s for kind in DEFAULTS for s in kind.shapes]
    raise InputError(Problem("no task takes this shape of data", "task", f"one of {listed(known)}", repr(name)))

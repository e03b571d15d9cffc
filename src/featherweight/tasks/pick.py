"""The task that a data shape asks for, and among tasks of one shape the one that the model's architecture can do."""

from typing import Any

from featherweight.core.errors import InputError, Problem, listed
from featherweight.tasks.causal import CausalLM
from featherweight.tasks.choices import Choices
from featherweight.tasks.classification import Classification
from featherweight.tasks.embedding import Embedding
from featherweight.tasks.language import head_of
from featherweight.tasks.multilabel import MultiLabel
from featherweight.tasks.probing import CausalProbing
from featherweight.tasks.question_answering import QuestionAnswering
from featherweight.tasks.regression import Regression
from featherweight.tasks.task import Task
from featherweight.tasks.token_classification import TokenClassification

DEFAULTS: tuple[type[Task], ...] = (
    *(Classification, MultiLabel, Regression, CausalLM, Choices, Embedding),
    *(QuestionAnswering, TokenClassification, CausalProbing),
)


def task_for(shape: Any, config: Any = None) -> Task:
    """The default task of a `Shape` or of its name, for a model of this `config`: generative rows and choices are a
    decoder's, an encoder-decoder's or a masked language model's. Without a config they are a decoder's."""
    name = str(getattr(shape, "name", shape))
    kinds = [kind for kind in DEFAULTS if name in kind.shapes]
    if not kinds:
        known = [s for kind in DEFAULTS for s in kind.shapes]
        raise InputError(Problem("no task takes this shape of data", "task", f"one of {listed(known)}", repr(name)))
    default, head = kinds[0], head_of(config)
    if default.auto == "AutoModelForCausalLM" and head != default.auto:
        others: list[Any] = list(Task.known.values())
        default = next((k for k in others if k.auto == head and name in k.shapes), default)
    return default()

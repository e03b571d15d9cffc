"""Recipes: how to train, by one word; every setting, method or task that is given goes over what the recipe says.

T-Few    (IA)³ with L_LM + L_UL + L_LN, Adafactor, rate 3e-3, 60 warm-up steps and a linear decay,
         1,000 steps of 8 rows; nothing is tuned for a task    Liu et al. 2022, section 3
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.core.method import Method
from featherweight.core.noun import Noun
from featherweight.methods import IA3
from featherweight.tasks import Task, task_for

DURATION = frozenset({"epochs", "steps"})  # one of them is given
HOUSEKEEPING = frozenset({"checkpoint_every", "eval_every", "best"})  # chosen here, not by a paper


@dataclass(frozen=True, repr=False)
class RunRecipe(Noun):
    """Base of every recipe: `settings` by their names in `Settings`, a `method`, and the `shape` of data it is for."""

    paper: ClassVar[str] = ""
    shape: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}

    @property
    @abstractmethod
    def method(self) -> Method:
        """What is attached."""

    def task(self, config: Any) -> Task:
        """What a batch means, for a model of this config."""
        return task_for(self.shape, config)

    def under(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's settings below those that are given; epochs that are given replace its steps."""
        dropped = DURATION if DURATION & values.keys() else frozenset()
        return {k: v for k, v in self.settings.items() if k not in dropped} | dict(values)

    def told(self, values: Mapping[str, Any], method: Method | None, task: Task, config: Any) -> str:
        """One line: what the recipe stands for, and where a run departs from it. No method: an adapter goes on."""
        own = self.task(config)
        said = [repr(self.method), repr(own), *(f"{k} {v}" for k, v in self.settings.items() if k not in HOUSEKEEPING)]
        other = [f"{k} {values.get(k)}" for k, v in self.settings.items() if k in values and values[k] != v]
        other += [f"{k} {values[k]}" for k in DURATION & values.keys() - self.settings.keys()]
        other += [] if task == own else [repr(task)]
        other += ["the adapter that is there"] if method is None else [repr(method)] if method != self.method else []
        departs = f"; instead of these: {', '.join(other)}" if other else ""
        return f"recipe {type(self).__name__.lower()} ({self.paper}): {', '.join(said)}{departs}"


@dataclass(frozen=True, repr=False)
class TFew(RunRecipe):
    """The T-Few recipe, for rows of choices."""

    paper: ClassVar[str] = "Liu et al. 2022"
    shape: ClassVar[str] = "choices"
    settings: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adafactor", "lr": 3e-3, "schedule": "linear", "warmup": 60, "steps": 1000, "batch": 8,
        "clip": 1.0, "decay": 0.0, "best": False, "checkpoint_every": 100, "eval_every": 1000,
    }  # fmt: skip

    @property
    def method(self) -> Method:
        return IA3()


def under(recipe: RunRecipe | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe.under(values)`; without one the values as they are."""
    return dict(values) if recipe is None else recipe.under(values)


def recipe_of(given: RunRecipe | str | None) -> RunRecipe | None:
    """The recipe of that name, or itself. Raises InputError with a did-you-mean."""
    if given is None or isinstance(given, RunRecipe):
        return given
    made: Any = RunRecipe.known.get(str(given).lower())
    if made is None:
        fix = did_you_mean(str(given).lower(), RunRecipe.known)
        raise InputError(Problem("unknown recipe", "recipe", got=repr(given), fix=fix))
    found: RunRecipe = made()
    return found

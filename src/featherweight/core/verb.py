"""A package that is a verb too: `featherweight.train(...)` calls the function of its name."""

from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """The class of a package that is called as the function of its own last name; set as `__class__` of its module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

"""Nouns: methods, schemes and tasks are frozen dataclasses whose repr is their constructor call and their file form.

LoRA(rank=8)  <->  {"type": "lora", "rank": 8}       only fields that differ from their default are written
A field that is a noun itself is a form in the form: QAT(scheme=NF4())  <->  {"type": "qat", "scheme": {"type": "nf4"}}
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self, get_args, get_type_hints

from featherweight.core.errors import Problem, did_you_mean, raise_all


@dataclass(frozen=True)
class Noun:
    """Base of every noun. A subclass of a subclass registers itself under its lower-case class name in `known`, unless
    it leaves a method abstract: that is what several nouns share."""

    known: ClassVar[dict[str, type["Noun"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Noun in cls.__bases__:
            cls.known = {}  # a new family: methods, schemes, tasks
        elif not any(getattr(value, "__isabstractmethod__", False) for value in vars(cls).values()):
            cls.known[cls.__name__.lower()] = cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.changed().items())})"

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their default, in order of definition."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != default(f)}

    def to_dict(self) -> dict[str, Any]:
        """The JSON and TOML form. Raises TypeError for a field that has none (a predicate as target)."""
        return {"type": type(self).__name__.lower()} | {k: plain(k, v) for k, v in self.changed().items()}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any], where: str = "") -> Self:
        """The noun of a family (`Method.from_dict`) from its file form; all unknown keys are reported at once."""
        options = dict(form)
        kind = str(options.pop("type", ""))
        made = cls.known.get(kind.lower())
        if made is None:
            raise_all(
                [
                    Problem(
                        "unknown type",
                        f"{where}.type".lstrip("."),
                        got=repr(kind),
                        fix=did_you_mean(kind.lower(), cls.known),
                    )
                ]
            )
        assert made is not None
        names = [f.name for f in fields(made)]
        raise_all(
            Problem("unknown key", f"{where}.{key}".lstrip("."), got=repr(options[key]), fix=did_you_mean(key, names))
            for key in options
            if key not in names
        )
        families = nested(made)
        return made(**{k: read(v, families.get(k), f"{where}.{k}".lstrip(".")) for k, v in options.items()})  # type: ignore[return-value]


def default(f: Field[Any]) -> Any:
    """A dataclass field's default, MISSING where it has none."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def nested(made: type[Noun]) -> dict[str, type[Noun]]:
    """The fields of a noun that hold nouns of a family: name -> family."""
    found = {}
    for name, hint in get_type_hints(made).items():
        family = next((k for k in (hint, *get_args(hint)) if isinstance(k, type) and issubclass(k, Noun)), None)
        if family is not None:
            found[name] = family
    return found


def read(value: Any, family: type[Noun] | None, where: str) -> Any:
    """A field's value from its file form; a noun may be given by its name alone."""
    if family is not None and isinstance(value, str | Mapping):
        return family.from_dict({"type": value} if isinstance(value, str) else value, where)
    return tuple(value) if isinstance(value, list) else value


def plain(name: str, value: Any) -> Any:
    if isinstance(value, Noun):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [plain(name, v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(name, v) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{name}={value!r} has no file form: give a role, a list of names or a regex instead")

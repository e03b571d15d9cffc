"""Every key that a run's file and flags may hold: what it takes, its default and what it is for."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_type_hints

from featherweight.core.noun import Noun


@dataclass(frozen=True, slots=True)
class Key:
    """`kind` is a type hint; `default` is None where the key is needed or decided later."""

    name: str
    kind: Any
    default: Any = None
    about: str = ""


OWN = (
    Key("model", str, None, "The base: a folder, or a name on the hub."),
    Key("data", str | list[str] | dict[str, Any], None,
        "A file, a folder with train/valid/test, a hub data set, or a.jsonl:0.7,b.jsonl:0.3."),
    Key("task", str, None, "classification, questionanswering … (all: docs/tasks.md; default: by the data's shape)."),
    Key("method", str, "lora", "Any that `fw methods` lists."),
    Key("quantize", str, None, "Keep the base in this number format: any that `fw quantize` lists, or none."),
    Key("output", str, None, "The folder of the run (default: out/<name of the data>)."),
    Key("name", str, "default", "The adapter's name."),
    Key("from", str, None, "Go on training this adapter; its base is the model."),
    Key("over", str | dict[str, str], None,
        "Adapters to load first, which the method works over (Fusion): a=out/a,b=out/b."),
    Key("columns", str | dict[str, str], None, "Which column is what: text=review,label=stars."),
    Key("recipe", str, None, "Train as published, by one word: tfew. What else is given goes over it."),
    Key("template", str, None, "Prompt templates that write the rows: a set, one of it (`fw templates`), a folder."),
    Key("seeds", tuple[int, ...] | int, None,
        "A run for each of these, each in a folder of its own; median and quartiles: 0,1,32,42,1024."),
    Key("limit", str, None, "Plan first, and do not start where more memory than this is needed: 6GB."),
)  # fmt: skip


def run_keys() -> dict[str, Key]:
    """The keys of `fw train`: model, data, ... and every field of Settings."""
    from featherweight.train.settings import Settings

    keys = {key.name: key for key in OWN}
    for name, field in Settings.model_fields.items():
        kind: Any = field.annotation
        for constraint in field.metadata:
            kind = Annotated[kind, constraint]
        keys[name] = Key(name, kind, field.default, field.description or "")
    return keys


def noun_keys(noun: type[Any]) -> dict[str, Key]:
    """The fields of a method or task."""
    hints = get_type_hints(noun)
    return {f.name: Key(f.name, hints[f.name], first(f)) for f in fields(noun)}


def first(f: Any) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def is_field(key: str) -> bool:
    """Whether the entry of a table (`quantize.block`) is a field of any noun of its family."""
    return bool(kinds_of(key))


def switches(key: str) -> bool:
    """Whether it is a yes or no there."""
    return bool in kinds_of(key)


def kinds_of(key: str) -> list[Any]:
    family, _, name = key.partition(".")
    nouns = FAMILIES[family]().values() if family in FAMILIES and name else ()
    return [keys[name].kind for noun in nouns if name in (keys := noun_keys(noun))]


def schemes() -> dict[str, type[Noun]]:
    """Every number format by the name that files and flags use."""
    import featherweight.quant
    from featherweight.quant.scheme import Scheme

    assert featherweight.quant
    return dict(Scheme.known)


def methods() -> dict[str, type[Noun]]:
    """Every method by the name that files and flags use."""
    import featherweight.methods
    import featherweight.quant  # QAT
    from featherweight.core.method import Method

    assert featherweight.methods  # imported so that the methods register themselves
    return dict(Method.known)


def distillations() -> dict[str, type[Noun]]:
    """Every recipe of `fw distill` by the name that files and flags use."""
    import featherweight.distill.recipes
    from featherweight.distill.recipes.recipe import Recipe

    assert featherweight.distill.recipes
    return dict(Recipe.known)


def distilling(name: str) -> Callable[[], dict[str, Any]]:
    """The options of `fw distill` that are no noun."""

    def known() -> dict[str, Any]:
        from featherweight.distill.augment import Augment
        from featherweight.distill.cache import TeacherCache

        return {name: {"cache": TeacherCache, "augment": Augment}[name]}

    return known


def tasks() -> dict[str, type[Noun]]:
    """Every task by the name that files and flags use."""
    import featherweight.tasks
    from featherweight.tasks.task import Task

    assert featherweight.tasks
    return dict(Task.known)


FAMILIES: dict[str, Callable[[], dict[str, type[Noun]]]] = {
    "method": methods, "task": tasks, "quantize": schemes, "scheme": schemes,
    "quantize_teacher": schemes, "recipe": distillations, "cache": distilling("cache"),
    "augment": distilling("augment"),
}  # fmt: skip

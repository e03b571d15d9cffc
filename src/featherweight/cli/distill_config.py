"""The configuration of `fw distill`: as that of `fw train`, with a teacher, a student, a recipe and a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight.cli.config import NOUNS, checked, columns, default_output, overridden, together
from featherweight.cli.flags import one
from featherweight.cli.nouns import built, noun
from featherweight.cli.recipes import recipe as scheme_of
from featherweight.cli.schema import FAMILIES, OWN, Key, distillations, methods, run_keys, tasks
from featherweight.cli.toml_file import TABLES, read_toml
from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem, raise_all

FAMILY = (*NOUNS, "recipe", "quantize_teacher")
TABLE = (*TABLES, "recipe", "quantize_teacher", "cache", "augment", "first")
SHARED = ("data", "task", "method", "output", "columns")  # of fw train's own keys
NAMES = ("TEACHER", "DATA")
NEEDED = {"teacher": "a teacher", "data": "data"}

DISTILL = (
    Key("teacher", str, None, "A model folder, an adapter's folder, or a name on the hub."),
    Key("recipe", str, "kd", "kd, distilbert, tinybert (two stages), minilm, distilgpt2, gkd, sequencekd; its options: "
        "--recipe.temperature 4."),
    Key("layers", int | tuple[int, ...] | None, None, "Blocks of the student: how many, or which: 0,2,5 [half]."),
    Key("blocks", str, "spread", "Which blocks: spread, strided, groups, first, last, importance (on the data)."),
    Key("width", int | None, None, "Of a student narrower than its teacher; it starts at random."),
    Key("ffn", int | None, None, "Of its feed-forward layers."),
    Key("student", str, None, "A model of your own as the student, instead of one made of the teacher."),
    Key("quantize_teacher", str, None, "Keep the teacher in this number format: any that `fw quantize` lists."),
    Key("cache", bool, False, "Compute the teacher's outputs once and keep them on disk, in OUT/teacher; "
        "--cache.folder DIR to share them, --cache.top 50, --cache.dtype bf16, --cache.changed recompute."),
    Key("augment", str, None, "A masked LM that makes more rows of each, as in TinyBERT; --augment.samples 20, "
        "--augment.share 0.4, --augment.words 15, --augment.context false for nearest words of any encoder."),
    Key("control", bool, False, "Train the same student on labels alone too: what did the teacher do?"),
    Key("rounds", int, 15, "Rounds of timing in the report, all models in each."),
    Key("first.epochs", float | None, None, "Passes of the first of two stages; also --first.steps, --first.lr."),
)  # fmt: skip


@dataclass(frozen=True)
class DistillConfig:
    """What `fw distill` was asked to do. `stages` are the recipes in order, each with its name."""

    teacher: str
    data: Any
    output: str
    stages: tuple[tuple[str, Any], ...]
    student: str | None = None
    made: dict[str, Any] = field(default_factory=dict)  # layers, blocks, width, ffn
    task: Any = None
    method: Any = None
    quantize_teacher: Any = None
    cache: Any = None
    augment: Any = None
    control: bool = False
    rounds: int = 15
    columns: dict[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def distill_keys() -> dict[str, Key]:
    """Every plain key."""
    shared = {key.name: key for key in OWN if key.name in SHARED}
    own = {key.name for key in OWN}
    settings = {name: key for name, key in run_keys().items() if name not in own}
    return {**{key.name: key for key in DISTILL}, **shared, **settings}


def read_distill(words: Sequence[str]) -> DistillConfig:
    """The configuration of a command line. Raises one InputError over everything that is wrong with it."""
    keys, problems = distill_keys(), list[Problem]()
    values = gathered(words, keys, problems)
    made = checked(values, {k: v for k, v in keys.items() if "." not in k}, problems, TABLE)
    stages = staged(values, problems)
    task, method = noun("task", tasks, values, problems), noun("method", methods, values, problems)
    scheme = scheme_of("quantize_teacher", values, problems)
    known = run_keys().keys() - {own.name for own in OWN}
    settings = {k: v for k, v in made.items() if k in known}
    first = firsts(values, keys, len(stages), problems)
    problems += [*together(settings, values), *needed(made, values, problems)]
    output = made.get("output") or (default_output(made["data"]) if "data" in made else "")
    cache = cached(values, made, output, problems)
    extra = augment(values, made, problems)
    raise_all(problems)
    return DistillConfig(
        teacher=made["teacher"], data=made["data"], output=output, stages=stages, student=made.get("student"),
        made={k: made[k] for k in ("layers", "blocks", "width", "ffn") if made.get(k) is not None}, task=task,
        method=method, quantize_teacher=None if scheme == "none" else scheme, cache=cache, augment=extra,
        control=made.get("control", False), rounds=made.get("rounds", 15), columns=columns(made),
        settings=settings, first=first,
        origins={k: v.where for k, v in values.items()},
    )  # fmt: skip


def gathered(words: Sequence[str], keys: Mapping[str, Key], problems: list[Problem]) -> dict[str, Value]:
    """All values: of the file, of the words, of the flags over them."""
    plain, flags, rest = list[str](), list[Value](), list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            found = one("--output" if word == "--out" else word.replace("--out=", "--output="), rest, keys)
            (problems if isinstance(found, Problem) else flags).append(found)  # type: ignore[arg-type]
        else:
            plain.append(word)
    listed: list[Value] = []
    if plain and plain[0].endswith(".toml"):
        try:
            listed = read_toml(Path(plain.pop(0)), TABLE)
        except InputError as error:
            problems += error.problems
    for word in plain[len(NAMES) :]:
        problems.append(Problem("a word too many", got=repr(word), fix="fw distill TEACHER DATA, then flags"))
    named = [Value(name.lower(), word, name, flag=True) for name, word in zip(NAMES, plain, strict=False)]
    twice = {v.key for v in named} & {v.key for v in flags}
    problems += [Problem("given twice", f"--{key}", fix="as a word or as a flag") for key in sorted(twice)]
    return overridden(listed, [*named, *flags], FAMILY)


def staged(values: Mapping[str, Value], problems: list[Problem]) -> tuple[tuple[str, Any], ...]:
    """The recipe, once for each of its stages; one where the options say which."""
    mine = {k: v for k, v in values.items() if k.startswith("recipe.")}
    mine.setdefault("recipe.type", Value("recipe.type", "kd", "recipe"))
    kind: Any = distillations().get(str(mine["recipe.type"].raw).lower())
    stages = kind.stages if kind is not None else ({},)
    asked = any(f"recipe.{name}" in mine for stage in stages for name in stage)
    if asked or len(stages) == 1:
        made = noun("recipe", distillations, mine, problems)
        return (("run", made),)
    found = []
    for stage in stages:
        given = {f"recipe.{k}": Value(f"recipe.{k}", v, "recipe") for k, v in stage.items()}
        found.append((str(next(iter(stage.values()))), noun("recipe", distillations, {**mine, **given}, problems)))
    return tuple(found)


def firsts(
    values: Mapping[str, Value], keys: Mapping[str, Key], stages: int, problems: list[Problem]
) -> dict[str, Any]:
    """Settings of the first stage alone."""
    mine = {k: Value(k.split(".", 1)[1], v.raw, v.where, v.flag) for k, v in values.items() if k.startswith("first.")}
    given = {v.key: v for v in mine.values()}
    known = {name: key for name, key in keys.items() if name in ("epochs", "steps", "lr")}
    if given and stages == 1:
        problems.append(Problem("the recipe has one stage", next(iter(given.values())).where, fix="leave it out"))
    made = checked(given, known, problems)
    problems += together(made, given)
    return made


def needed(made: Mapping[str, Any], values: Mapping[str, Value], problems: Sequence[Problem]) -> list[Problem]:
    """A teacher and data; of a student that is given nothing more is said."""
    meant = " ".join(p.fix for p in problems)  # a misspelt --dta is one mistake, not two
    missing = [k for k in ("teacher", "data") if k not in values and f"{k}'?" not in meant]
    fix = "fw distill TEACHER DATA, or a .toml file that names both"
    found = [Problem(f"{NEEDED[k]} is needed", k, fix=fix) for k in missing]
    if made.get("rounds", 2) < 2:
        found.append(Problem("wrong value", values["rounds"].where, "at least 2", str(made["rounds"])))
    if "student" in made:
        clash = [k for k in ("layers", "width", "ffn", "blocks") if k in values]
        found += [Problem("a student of your own has its sizes", values[k].where, fix="leave it out") for k in clash]
    return found


def table(name: str, values: Mapping[str, Value], problems: list[Problem], **own: Any) -> Any:
    """The options of a table as its dataclass; None where they are wrong."""
    mine = {k.split(".", 1)[1]: v for k, v in values.items() if k.startswith(f"{name}.")}
    return built(FAMILIES[name]()[name], mine, problems, name, **own)


def cached(values: Mapping[str, Value], made: Mapping[str, Any], output: str, problems: list[Problem]) -> Any:
    """The cache where it is asked for, by its name or by an option."""
    asked = made.get("cache", any(k.startswith("cache.") for k in values))
    return table("cache", values, problems, folder=str(Path(output) / "teacher")) if asked else None


def augment(values: Mapping[str, Value], made: Mapping[str, Any], problems: list[Problem]) -> Any:
    """The model that fills in words, and the options; None where there is none."""
    options = [v.where for k, v in values.items() if k.startswith("augment.")]
    if "augment" not in made and "augment.model" not in values:
        fix = "--augment MODEL names the masked LM"
        problems += [Problem("an option of no augmentation", where, fix=fix) for where in options]
        return None
    return table("augment", values, problems, **({"model": made["augment"]} if "augment" in made else {}))

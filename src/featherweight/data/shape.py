"""What the columns mean: found by their names, never registered; what cannot be decided is an error that lists them.

| name           | columns                                      | label |
|----------------|----------------------------------------------|-------|
| text           | text                                         |       |
| classification | text, label                                  | str   |
| pair           | text, text_pair, label                       | str   |
| regression     | text (+ text_pair), score                    | float |
| multilabel     | text (+ text_pair), list of labels           | tuple |
| completion     | prompt, completion                           |       |
| instruction    | instruction (+ input system history), output |       |
| messages       | messages or conversations                    |       |
| contrast       | anchor, positive (+ negative(s)) (+ label)   | str   |
| choices        | prompt (or text), list of choices, answer    | int   |
| spans          | question, context, answers (+ answer_start)  | tuple |
| tokens         | list of tokens, list of their tags           | tuple |
| fact           | subject, object, template or relation        | str   |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.data import names
from featherweight.data.jsons import short
from featherweight.data.types import Row

ROLES = ", ".join(names.ROLES)
FIX = f"map them: --columns text=…,label=… (roles: {ROLES})"


@dataclass(frozen=True, slots=True)
class Shape:
    """`columns` maps a role to the file's column; `labelled` is False where no row carries its answer."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    labelled: bool = True

    @property
    def pair(self) -> bool:
        return "text_pair" in self.columns


def pairs(columns: Mapping[str, str] | str | None) -> dict[str, str]:
    """`"text=review,label=stars"` or a dict, as ours → theirs."""
    if isinstance(columns, str):
        parts = [part.split("=", 1) for part in columns.split(",") if part.strip()]
        raise_all(Problem("not a mapping", "columns", "role=column", repr(p[0]), FIX) for p in parts if len(p) != 2)
        return {role.strip(): column.strip() for role, column in parts}
    return dict(columns or {})


def mapping(columns: Mapping[str, str] | str | None) -> dict[str, str]:
    """The pairs, as role → column. Raises InputError for unknown roles."""
    chosen = pairs(columns)
    raise_all(Problem("unknown role", f"columns.{role}", fix=did_you_mean(role, names.ROLES))
              for role in chosen if role not in names.ROLES)  # fmt: skip
    return chosen


def shape_of(rows: Sequence[Row], columns: Mapping[str, str] | str | None = None) -> Shape:
    """The one meaning that the columns of `rows` have. Raises InputError when there is none, or more than one."""
    chosen = mapping(columns)
    seen = list(dict.fromkeys(key for row in rows for key in row.fields))
    where = rows[0].where.rsplit(":", 1)[0]
    raise_all(absent(chosen, seen))
    found = candidates(by_name(seen, chosen))
    if len(seen) == 1 and not chosen:
        found = found or [{"text": seen[0]}]
    found = [f for f in found if set(chosen) <= set(f)]
    if len(found) != 1:
        raise InputError(undecided(where, rows, seen, found))
    return settle(rows, found[0])


def absent(chosen: Mapping[str, str], seen: Sequence[str]) -> list[Problem]:
    """The mapped columns that no row has."""
    return [Problem("no such column", f"columns.{role}", got=repr(column), fix=did_you_mean(column, seen))
            for role, column in chosen.items() if column not in seen]  # fmt: skip


def undecided(where: str, rows: Sequence[Row], seen: list[str], found: list[dict[str, str]]) -> Problem:
    """With the first row, and a mapping of these very columns to start from."""
    shown = "; or ".join(", ".join(f"{role}={column}" for role, column in f.items()) for f in found)
    what = "the columns can be read in more than one way" if found else "the columns say nothing we know"
    first = listed([f"{c}={short(rows[0].fields.get(c), 30)}" for c in seen])
    got = f"columns {listed(seen)}" + (f" ({shown})" if shown else f" (first row: {first})")
    return Problem(what, where, "one meaning", got, f"map them: --columns {suggestion(rows, seen)} (roles: {ROLES})")


def suggestion(rows: Sequence[Row], seen: Sequence[str]) -> str:
    """The column of the longest texts as text; that of the fewest values, where they recur, as label."""
    values = {c: [str(row.fields.get(c, "")) for row in rows[:1000]] for c in seen}
    ranked = sorted(seen, key=lambda c: -sum(map(len, values[c])))
    labels = [c for c in ranked[1:] if 1 < len(set(values[c])) <= max(2, len(values[c]) // 2)]
    mapped = f"text={ranked[0]}" if ranked else "text=…,label=…"
    if labels:
        mapped += f",label={min(labels, key=lambda c: len(set(values[c])))}"
    return f'"{mapped}"' if " " in mapped else mapped


def by_name(seen: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Plain name → column; mapped roles first, and a mapped column is no longer known by its own name."""
    free = {names.plain_name(c): c for c in reversed(seen) if c not in chosen.values()}
    return {**free, **chosen}


def candidates(known: Mapping[str, str]) -> list[dict[str, str]]:
    """Every reading of the columns that is not part of a larger one."""
    texts = [{"text": known[a], "text_pair": known[b]} for a, b in names.PAIRS if a in known and b in known]
    texts += [{"text": column} for column in choose(known, names.TEXT)]
    answers = [{role: column} for role, choices in
               (("label", names.LABEL), ("score", names.SCORE), ("labels", names.LABELS))
               for column in choose(known, choices)]  # fmt: skip
    found = texts + [{**text, **answer} for text in texts for answer in answers if disjoint(text, answer)]
    found += [{"prompt": known[a], "completion": known[b]} for a, b in names.PROMPTS if a in known and b in known]
    found += [{"prompt": known["prompt"]}] if "prompt" in known else []
    found += choosing(known) + contrasts(known)
    if plain := spans(known) + tagged(known) + facts(known):  # beside these a title or a sentence is no meaning
        found = [f for f in found if set(f) != {"text"}] + plain
    found += instructions(known) + [{"messages": column} for column in choose(known, names.MESSAGES)]
    return maximal(found)


def instructions(known: Mapping[str, str]) -> list[dict[str, str]]:
    if "instruction" not in known:
        return []
    rest = {role: known[role] for role in ("input", "system", "history") if role in known}
    if "input" not in rest and "context" in known:
        rest["input"] = known["context"]
    base = {"instruction": known["instruction"], **rest}
    outputs = choose(known, names.OUTPUT)
    return [{**base, "output": column} for column in outputs] or [base]


def choosing(known: Mapping[str, str]) -> list[dict[str, str]]:
    """A text with a list of answers and the number or the text of the right one."""
    texts = choose(known, names.CONTEXT)
    lists, answers = choose(known, names.CHOICES), choose(known, [*names.LABEL, "answer"])
    bare = [{"text": text, "choices": column} for text in texts for column in lists]
    return bare + [{**reading, "label": column} for reading in bare for column in answers]


def contrasts(known: Mapping[str, str]) -> list[dict[str, str]]:
    """A text with the passage it belongs to, and maybe with one or a list of those it does not, or a label: rows of one
    label belong together."""
    if "positive" not in known:
        return []
    found = [{"anchor": text, "positive": known["positive"]} for text in choose(known, names.ANCHOR)]
    found += [{**f, "negative": known[n]} for f in found for n in ("negative", "negatives") if n in known]
    return found + [{**f, "label": column} for f in found for column in choose(known, names.LABEL)]


def spans(known: Mapping[str, str]) -> list[dict[str, str]]:
    """A question with the passage that its answer is a piece of, and maybe where it starts."""
    start = next(({"start": known[n]} for n in ("start", "answer_start") if n in known), {})
    return [{"text": known[a], "text_pair": known[b], "answers": column, **start}
            for a, b in names.ASKED if a in known and b in known for column in choose(known, names.SPANS)]  # fmt: skip


def tagged(known: Mapping[str, str]) -> list[dict[str, str]]:
    bare = [{"tokens": column} for column in choose(known, names.TOKENS)]
    return bare + [{**b, "tags": column} for b in bare for column in choose(known, names.TAGS)]


def facts(known: Mapping[str, str]) -> list[dict[str, str]]:
    """A subject with its object, the relation between them, or the words of it; one of these at least."""
    rest = {role: choose(known, synonyms)[:1] for role, synonyms in
            (("object", names.OBJECT), ("relation", names.RELATION), ("template", ["template"]))}  # fmt: skip
    found = {role: columns[0] for role, columns in rest.items() if columns}
    return [{"subject": column, **found} for column in choose(known, names.SUBJECT)[:1] if found]


def choose(known: Mapping[str, str], synonyms: Sequence[str]) -> list[str]:
    """The column of the role's own name (the first synonym) if there is one, else all that go by another."""
    return [known[synonyms[0]]] if synonyms[0] in known else [known[n] for n in synonyms if n in known]


def disjoint(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    return not set(a.values()) & set(b.values())


def maximal(found: list[dict[str, str]]) -> list[dict[str, str]]:
    kept: list[dict[str, str]] = []
    for reading in found:
        larger = any(set(reading.values()) < set(other.values()) for other in found)
        if not larger and set(reading.values()) not in [set(k.values()) for k in kept]:
            kept.append(reading)
    return kept


def settle(rows: Sequence[Row], columns: dict[str, str]) -> Shape:
    """The shape's name: decided by the columns, and for labels by their values too."""
    for role in ("messages", "instruction", "prompt"):
        if role in columns:
            answer = {"instruction": "output", "prompt": "completion"}.get(role)
            labelled = answer is None or filled(rows, columns.get(answer, ""))
            return Shape("completion" if role == "prompt" else role, columns, labelled)
    for role, name, answer in (
        ("answers", "spans", "answers"), ("tokens", "tokens", "tags"), ("subject", "fact", "object")
    ):  # fmt: skip
        if role in columns:
            return Shape(name, columns, filled(rows, columns.get(answer, "")))
    if "positive" in columns:
        return Shape("contrast", columns)
    if "choices" in columns:
        return Shape("choices", columns, filled(rows, columns.get("label", "")))
    role = next((r for r in ("label", "score", "labels") if r in columns), "text")
    values = [v for row in rows if not missing(v := row.fields.get(columns[role]))]
    if role == "text" or not values:
        return Shape("pair" if "text_pair" in columns else "text", columns, False)
    if role == "label":
        raise_all(mixed(rows, columns[role]))
    kind = kind_of(role, columns[role], values)
    return Shape("pair" if kind == "classification" and "text_pair" in columns else kind, columns)


def filled(rows: Sequence[Row], column: str) -> bool:
    return any(not missing(row.fields.get(column)) for row in rows)


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def mixed(rows: Sequence[Row], column: str) -> list[Problem]:
    """The rows whose label is a list among plain ones, or a plain one among lists: whichever are fewer."""
    plain: list[Row] = []
    lists: list[Row] = []
    for row in rows:
        if not missing(value := row.fields.get(column)):
            (lists if isinstance(value, list | tuple) else plain).append(row)
    if not (plain and lists):
        return []
    if len(plain) < len(lists):
        odd, what, want, fix = plain, "a plain label among lists", "a list of labels", 'write it as a list: ["…"]'
    else:
        odd, what, want = lists, "a list among plain labels", "one label"
        fix = "a row has one label, or every row a list of them"
    return [
        Problem(what, f"{r.where}:{column}", f"{want}, as in the other rows", short(r.fields[column]), fix) for r in odd
    ]


def kind_of(role: str, column: str, values: Sequence[Any]) -> str:
    """Lists are label sets; fractions are scores; integers are so when named so, or many under a neutral name."""
    if role == "labels" or any(isinstance(v, list | tuple) for v in values):
        return "multilabel"
    if role == "score":
        return "regression"
    numbers = [number(v) for v in values]
    real = [n for n in numbers if n is not None]
    if len(real) * 2 <= len(numbers):
        return "classification"
    if any(n != int(n) for n in real):
        return "regression"
    named = names.plain_name(column) in names.LABEL
    return "classification" if named or len(set(real)) <= 20 else "regression"


def number(value: Any) -> float | None:
    """A finite number, from a number or its text; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        n = float(value)
    except (ValueError, OverflowError):
        return None
    return n if abs(n) < float("inf") else None
